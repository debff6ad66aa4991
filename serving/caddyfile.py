"""Caddy's configuration: what may be asked, by whom, how much of it, and where it goes.

A request passes, in this order: the list of paths and methods, the keys service, the switch `down`, the limit of its
body, and waits for an engine. What is refused before the last step never reaches an engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipelines.config_serving import Serving, Tls
from pipelines.settings import Settings

PATHS = {"POST": ("/v1/chat/completions", "/v1/completions"), "GET": ("/v1/models",)}
"""Everything that may be asked."""

RETRY_SECONDS = 30
"""Told to who was held too long, or asks what is down: about how long a start takes."""

BUSY_SECONDS = 5
"""Told to who finds the engine's queue, or the keys service, at its limit."""

ADMIN = "admin.sock"
"""Caddy's admin endpoint, a socket in the folder that it works in: a path in full may be longer than sockets bear."""

CADDYFILE = """\
# Written by serving/caddyfile.py.
{{
	# A file of ours alone, in the folder that it is started in: whoever speaks to it may change everything.
	admin unix/{admin}|0600
	auto_https disable_redirects
	skip_install_trust
	persist_config off
	grace_period 30s
	metrics
	servers 127.0.0.1:{ready_port} {{
		name ready
	}}
	servers {{
		# No limit for bodies: one that is held is read only when an engine takes it.
		timeouts {{
			read_header 10s
		}}
		max_header_size 16KB
		protocols h1 h2
	}}
	log default {{
		level WARN
		{log_format}
	}}
}}

(front) {{
	log {{
		output file {access_log} {{
			mode 600
			roll_size 20MiB
			roll_keep 5
		}}
		{log_format}
	}}
	header -Server
	route {{
		# As it was sent: a matcher of paths would also admit other cases, doubled slashes and escapes, and /v1/* would
		# admit /v1/load_lora_adapter.
		@elsewhere not expression `{{http.request.uri}} in [{paths}]`
		error @elsewhere 404
		@method expression `{{http.request.method}} != ({{http.request.uri}} in [{post_paths}] ? "POST" : "GET")`
		error @method 405
		@keyless not header Authorization *
		error @keyless 401

		vars asked keys
		request_header -{name_header}
		forward_auth 127.0.0.1:{keys_port} {{
			uri /authorize
			copy_headers {name_header}
			# It is back within a second when it crashes. It sees no body, so that asking again repeats nothing.
			lb_try_duration 5s
			lb_try_interval 50ms
			lb_retry_match method POST
			transport http {{
				keepalive 30s
				response_header_timeout 3s
			}}
		}}
		log_append key {{http.request.header.{name_header}}}

		vars asked engine
		@down file {{
			root {ready}
			try_files /down
		}}
		error @down 503
		request_body {{
			max_size {body_megabytes}MB
		}}
		# Only what never reached an engine is tried again: lb_retry_match stays unset.
		reverse_proxy 127.0.0.1:{engine_port} {{
			header_up -Authorization
			lb_try_duration {hold_seconds}s
			lb_try_interval 100ms
			health_uri /
			health_port {ready_port}
			health_interval 100ms
			health_timeout 1s
			flush_interval -1
			# vLLM closes idle connections after 5 s: a POST that is sent on one just then would be lost.
			transport http {{
				keepalive off
			}}
			# Its queue is full: it says so, but not when to come again.
			@busy status 503
			handle_response @busy {{
				header Retry-After {busy_seconds}
				copy_response
			}}
		}}
	}}
	handle_errors {{
		@keyless expression `{{err.status_code}} == 401`
		header @keyless WWW-Authenticate Bearer
		@busy expression `{{err.status_code}} in [502, 503]`
		header @busy Retry-After {retry_seconds}
		header Content-Type application/json
		@keys `{{err.status_code}} in [502, 504] && {{http.vars.asked}} == "keys"`
		handle @keys {{
			header Retry-After {busy_seconds}
			respond `{keys_error}` 503
		}}
		handle {{
			respond `{any_error}` {{err.status_code}}
		}}
	}}
}}

http://:{front_port} {{
	bind {front_host}
	import front
}}
{tls}
http://:{ready_port} {{
	bind 127.0.0.1
	@open file {{
		root {ready}
		try_files /open
	}}
	route {{
		metrics /metrics
		respond @open 200
		respond 503
	}}
}}
"""

LOG_FORMAT = """format filter {
			wrap json
			fields {
				request>headers delete
				request>tls delete
				resp_headers delete
				request>uri regexp "[?].*" ""
			}
		}"""
"""Who asked what when, and what came of it: no header, no query, no body."""

TLS = """
https://{name}:{port}, https://:{port} {{
	bind {bind}
	tls {certificates}
	import front
}}
"""


def render_caddyfile(settings: Settings, serving: Serving, ready: Path, name_header: str) -> str:
    """The whole file.

    Args:
        ready: The folder of the switch.
        name_header: What the keys service calls a key's name.
    """
    return CADDYFILE.format(
        admin=ADMIN,
        front_host=settings.front_host,
        front_port=settings.front_port,
        engine_port=settings.engine_port,
        ready_port=settings.ready_port,
        keys_port=settings.keys_port,
        ready=_quoted(ready),
        access_log=_quoted(settings.serving / "access.log"),
        log_format=LOG_FORMAT,
        paths=_listed(path for paths in PATHS.values() for path in paths),
        post_paths=_listed(PATHS["POST"]),
        name_header=name_header,
        body_megabytes=serving.body_megabytes,
        hold_seconds=max(1, round(serving.hold_seconds)),
        retry_seconds=RETRY_SECONDS,
        busy_seconds=BUSY_SECONDS,
        keys_error=_error("keys cannot be checked now", "503"),
        any_error=_error("{err.status_text}", "{err.status_code}"),
        tls="" if serving.tls is None else _tls_site(serving.tls),
    )


def _tls_site(tls: Tls) -> str:
    files = [tls.certificate, tls.key] if tls.certificate and tls.key else []
    certificates = " ".join(map(_quoted, files)) or "internal"
    return TLS.format(name=tls.name, port=tls.port, bind=tls.bind, certificates=certificates)


def _error(message: str, code: str) -> str:
    """In the form of OpenAI's errors, which clients know how to show."""
    return f'{{"error":{{"message":"{message}","type":"front","code":{code}}}}}'


def _listed(paths: Iterable[str]) -> str:
    return ", ".join(f'"{path}"' for path in paths)


def _quoted(path: Path) -> str:
    return f'"{path}"'

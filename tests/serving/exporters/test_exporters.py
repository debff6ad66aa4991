"""Manifests of a release: the same engine in each, in the form that each place takes."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from pipelines.cli_release import FORMATS
from pipelines.errors import BadInput
from serving.engine import environment, options
from serving.exporters.document import to_yaml
from serving.exporters.kubernetes import object_name
from serving.exporters.place import Claim, Place, vllm_image
from serving.exporters.rayservice import to_kwargs, to_rayservice
from serving.release import Release
from serving.release_files import EXPORTERS
from tests.serving.exporters.released import CLAIM, KEPT, config, manifests, release, texts
from tests.serving.exporters.schemas import RAY_SERVE, SCHEMAS


@pytest.fixture(scope="module")
def made() -> Release:
    return release()


def command_lines(of: Release) -> dict[str, list[str]]:
    """What follows the names on each command line: where a manifest has one."""
    written = manifests(of)
    model = written["production-stack"]["servingEngineSpec"]["modelSpec"][0]
    lines = {
        "compose": written["compose"]["services"]["engine"]["command"],
        "kserve": written["kserve"]["spec"]["template"]["containers"][0]["args"],
        "production-stack": model["vllmConfig"]["extraArgs"],
    }
    after = {name: line.index("--served-model-name") for name, line in lines.items()}
    for name, line in lines.items():
        assert tuple(line[after[name] + 1 : after[name] + 3]) == of.names
    return {name: line[after[name] + 3 :] for name, line in lines.items()}


def engine_kwargs(of: Release) -> dict[str, Any]:
    served = yaml.safe_load(manifests(of)["rayservice"]["spec"]["serveConfigV2"])
    return served["applications"][0]["args"]["llm_configs"][0]["engine_kwargs"]


@pytest.mark.parametrize("hardware", ["l40s_48gb", "h200_capped_48gb"])
def test_the_engine_is_the_one_that_was_measured_in_all_of_them(hardware: str) -> None:
    of, measured = release(hardware), config(hardware)
    flags = options(measured.serving, measured.images, measured.hardware)
    assert len(flags) > 15
    assert list(of.engine.arguments) == flags
    started = environment(measured.serving, measured.hardware)
    assert {**of.engine.environment, "VLLM_HOST_IP": "127.0.0.1"} == started
    assert int(started["VLLM_MAX_IMAGE_PIXELS"]) == measured.serving.image_megapixels * 1_000_000
    assert command_lines(of) == dict.fromkeys(("compose", "kserve", "production-stack"), flags)
    assert engine_kwargs(of) == to_kwargs(flags)


def test_vllm_reads_the_same_from_flags_as_from_rays_fields(made: Release) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    read = parser.parse_args(["model", *made.engine.arguments])
    unset = parser.parse_args(["model"])
    said = {name: value for name, value in vars(read).items() if value != vars(unset)[name]}
    kwargs = engine_kwargs(made)
    assert {name: vars(read)[name] for name in kwargs} == kwargs
    assert said.keys() <= kwargs.keys()
    of_the_server = vars(argparse.Namespace(**kwargs)).keys() - AsyncEngineArgs.__dataclass_fields__.keys()
    assert of_the_server == {"disable_uvicorn_access_log"}  # Ray hands these on as well


@pytest.mark.parametrize("name", EXPORTERS)
def test_it_has_the_form_that_the_place_takes(made: Release, name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])
    manifest = yaml.safe_load(to_yaml(manifests(made)[name]))
    assert [error.message for error in Draft202012Validator(SCHEMAS[name]).iter_errors(manifest)] == []
    if name == "rayservice":
        served = yaml.safe_load(manifest["spec"]["serveConfigV2"])
        assert [error.message for error in Draft202012Validator(RAY_SERVE).iter_errors(served)] == []


@pytest.mark.parametrize("name", [*(f"{name}.yaml" for name in EXPORTERS), "release.json"])
def test_it_is_what_is_kept_letter_for_letter(name: str) -> None:
    kept = (KEPT / name).read_text()
    assert texts()[name] == kept, "if it is meant: python -m tests.serving.exporters.released"
    assert "&id" not in kept  # an anchor


def test_the_command_offers_every_format() -> None:
    assert tuple(EXPORTERS) == FORMATS


def test_a_release_reads_itself(made: Release) -> None:
    assert Release.model_validate_json(made.model_dump_json()) == made
    with pytest.raises(ValueError, match="schema_version"):
        Release.model_validate(made.model_dump() | {"schema_version": 2})


def test_an_engine_has_its_whole_deadline_to_start_and_to_end(made: Release) -> None:
    pod = manifests(made)["kserve"]["spec"]["template"]
    startup = pod["containers"][0]["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= made.probes.start_seconds
    assert pod["terminationGracePeriodSeconds"] > made.probes.drain_seconds


def test_no_second_engine_is_put_on_a_full_card(made: Release) -> None:
    strategy = manifests(made)["production-stack"]["servingEngineSpec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_compose_listens_on_loopback_and_replaces_nothing_in_the_arguments(made: Release) -> None:
    dollar = made.engine.model_copy(update={"arguments": ("--served", "$HOME")})
    service = manifests(made.model_copy(update={"engine": dollar}))["compose"]["services"]["engine"]
    assert service["command"][-1] == "$$HOME"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_a_cpu_has_no_card_and_no_ray() -> None:
    of = release("cpu", "train.optimizer=adamw")
    place = Place(image="ours/vllm-cpu:0.32.0", claim=CLAIM)
    for name in ("compose", "kserve", "production-stack"):
        assert "nvidia" not in to_yaml(EXPORTERS[name](of, place)), name
    with pytest.raises(BadInput, match="for a CPU; leave out rayservice"):
        to_rayservice(of, place)
    with pytest.raises(BadInput, match="name one by --image"):
        vllm_image(of)


@pytest.mark.parametrize("name", ["kserve", "production-stack", "rayservice"])
def test_a_cluster_needs_a_claim(made: Release, name: str) -> None:
    with pytest.raises(BadInput, match="--claim NAME/PATH"):
        EXPORTERS[name](made, Place(image="vllm/vllm-openai:v0.32.0"))


def test_a_claim_is_a_name_and_a_path() -> None:
    assert Claim.parse("models") == Claim("models", "")
    assert Claim.parse("models/a/b").uri == "pvc://models/a/b"
    assert Claim.parse("models/a/b").folder == "/mnt/models/a/b"
    for wrong in ("", "/models", "Models/a", "models/../a", "pvc://models"):
        with pytest.raises(BadInput, match="persistent volume claim"):
            Claim.parse(wrong)


def test_a_public_name_becomes_one_that_kubernetes_takes(made: Release) -> None:
    named = made.model_copy(update={"names": ("qwen3.vl_30b-", "x")})
    assert object_name(named) == "qwen3-vl-30b"
    for digit, name in {"30b": "model-30b", "7." + "x" * 80: "model-7-" + "x" * 55}.items():
        assert object_name(made.model_copy(update={"names": (digit, "x")})) == name

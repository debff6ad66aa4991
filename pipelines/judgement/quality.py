"""Is the candidate right as often as the reference, item by item? Surely, surely not, or not enough items to say."""

from __future__ import annotations

from collections import defaultdict

from pipelines.artifacts import Finding
from pipelines.config_gate import Gate, Requirement
from pipelines.judgement.side import Answers, Side, objection
from pipelines.statistics import Pairs, clustered_bounds, design_effect, items_to_decide, total


def quality(rules: Gate, candidate: Side, reference: Side, merged: Side | None) -> tuple[Finding, ...]:
    """A finding for each requirement, and one for what the scheme costs where the merged model was measured.

    All must pass, each at the full confidence: a candidate that is really inferior somewhere passes only if it passes
    there, which is as likely as that one test allows, however many others there are. Source: Berger, Multiparameter
    hypothesis testing and acceptance sampling, Technometrics 24 (1982), on intersection-union tests.
    """
    found = tuple(_required(requirement, candidate, reference, rules.confidence) for requirement in rules.requirements)
    return found if merged is None else (*found, _cost_of_scheme(rules, candidate, merged))


def pair(candidate: Answers, reference: Answers) -> tuple[Pairs, ...]:
    """Wins and losses by cluster: the items that show the same images; an item without any is alone."""
    clusters: defaultdict[str, list[int]] = defaultdict(list)
    for item, answer in candidate.items():
        change = answer.correct - reference[item].correct
        clusters[f"images {answer.cluster}" if answer.cluster else f"item {item}"].append(change)
    return tuple(Pairs(changes.count(1), changes.count(-1), len(changes)) for changes in clusters.values())


def _required(requirement: Requirement, candidate: Side, reference: Side, confidence: float) -> Finding:
    answers = {item: answer for item, answer in candidate.answers.items() if answer.slice == requirement.slice}
    n, right = len(answers), sum(answer.correct for answer in answers.values())
    if right / n < requirement.minimum:
        reason = f"{right} of {n} right ({right / n:.1%}) is below the minimum {requirement.minimum:.1%}"
        return objection(requirement.slice, reason)
    return compare(requirement.slice, answers, reference, requirement.threshold, confidence)


def _cost_of_scheme(rules: Gate, candidate: Side, merged: Side) -> Finding:
    if candidate.answers.keys() != merged.answers.keys():
        return objection("quantization", "the merged bf16 model answered other items; evaluate it again")
    return compare("quantization", candidate.answers, merged, -rules.quantization_margin, rules.confidence)


def compare(name: str, answers: Answers, reference: Side, threshold: float, confidence: float) -> Finding:
    """Pass when the difference is surely above the threshold, fail when it is surely below.

    Args:
        name: Of the finding.
        answers: The candidate's that count.
        threshold: Not above 0: what may be lost, as a share of the items; at 0 the candidate must be better.
    """
    clusters = pair(answers, reference.answers)
    lower, upper = clustered_bounds(clusters, confidence)
    bounds = f"{confidence:.0%} bounds {_points(lower)} and {_points(upper)}"
    right = sum(answer.correct for answer in answers.values())
    figures, (above, below, between) = _figures(right, clusters, reference.name, bounds), _verdicts(threshold)
    if lower > threshold:
        return Finding(name=name, outcome="pass", reason=f"{figures}: {above}")
    if upper < threshold:
        return objection(name, f"{figures}: {below}")
    need = _items_needed(clusters, threshold, confidence)
    reason = f"{figures}: {between}; {_way_out(need, total(clusters), threshold)}"
    return Finding(name=name, outcome="inconclusive", reason=reason, items_needed=need)


def _verdicts(threshold: float) -> tuple[str, str, str]:
    """What is said of a difference that is surely above, surely below, or neither."""
    if threshold == 0:
        return "surely better", "surely worse", "it may be no better"
    loss = f"loss beyond {-threshold * 100:g} points"
    return f"surely no {loss}", f"surely a {loss}", f"a {loss} is possible"


def _items_needed(clusters: tuple[Pairs, ...], threshold: float, confidence: float) -> int | None:
    items = total(clusters)
    return items_to_decide(items.wins, items.losses, items.n, threshold, confidence, design_effect(clusters))


def _way_out(need: int | None, items: Pairs, threshold: float) -> str:
    if need is None:
        return "at the observed rates no number of items would decide"
    verdict = "for it" if items.wins - items.losses > threshold * items.n else "against it"
    return f"about {need} items would decide, at the observed rates {verdict}"


def _figures(right: int, clusters: tuple[Pairs, ...], reference: str, bounds: str) -> str:
    items, effect = total(clusters), design_effect(clusters)
    shared = f"; {len(clusters)} groups of images, counted as {items.n / effect:.0f} items" if effect > 1 else ""
    return (
        f"{right} of {items.n} right ({right / items.n:.1%}), {_points((items.wins - items.losses) / items.n)} points "
        f"against {reference} (wins {items.wins}, losses {items.losses}; {bounds}{shared})"
    )


def _points(share: float) -> str:
    return f"{share * 100:+.1f}"

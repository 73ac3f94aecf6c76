"""The prior's report for people."""

from typing import Any

import torch

from evaluation.shared import which_split

JUDGED = {"colour": "colour", "shape": "shape", "size": "size", "count": "count", "relation": "relation"}
ALL = "all of it"  # what a caption says


def table(report: dict[str, Any]) -> str:
    """All but the map, which is a picture."""
    (height, width), cut = report["grid_size"], report["captions_cut"]
    lines = [
        f"{report['pictures']:,} pictures of {report['image_size']} pixels in {height}x{width} codes of "
        f"{report['codebook_size']:,} ({which_split(report)}), {report['weights']}, intervals of 95 %"
    ]
    if cut:
        lines.append(f"{cut:,} captions have more than {report['text_len'] - 1} tokens: their ends are cut off")
    if report["not_finite"]:
        lines.append(
            f"{report['not_finite']:,} pictures have nats that are not finite (null in the report, white on the map): "
            "look for NaN or inf in the prior's weights"
        )
    lines += [*_nats(report), *_times(report)]
    return "\n".join(lines + (_judged(report["samples"]) if "samples" in report else [_NOT_JUDGED]))


_NOT_JUDGED = "no samples were judged: none were wanted (--samples), or the captions are not those of drawings"


def _nats(report: dict[str, Any]) -> list[str]:
    gain = report["gain"]
    bits = gain["bits_per_picture"]["value"]
    return [
        *_of_pictures("image", report["image"]),
        *_of_pictures("no caption", report["null"]),
        f"{'caption tells':<14}{_interval(gain['nats_per_token'])} nats a token, {bits:.1f} bits a picture; of "
        f"{gain['pictures_with_gain']:.1%} of the pictures something",
        f"{'text':<14}{_rate(report['text'])}, {report['text']['tokens_per_caption']:.1f} tokens a caption",
    ]


def _of_pictures(label: str, rates: dict[str, Any]) -> list[str]:
    picture, pixel = rates["bits_per_picture"]["value"], rates["bits_per_pixel"]["value"]
    return [f"{label:<14}{_rate(rates)}", f"{'':<14}{picture:>10.1f} bits a picture, {pixel:.4f} a pixel"]


def _rate(rates: dict[str, Any]) -> str:
    bits = rates["bits_per_token"]["value"]
    return f"{_interval(rates['nats_per_token'])} nats a token, {bits:.4f} bits, perplexity {rates['perplexity']:.2f}"


def _interval(interval: dict[str, float]) -> str:
    return f"{interval['value']:>10.4f} ({interval['low']:.4f} to {interval['high']:.4f})"


def _times(report: dict[str, Any]) -> list[str]:
    forward, sampling = report["forward"], report.get("sampling")
    lines = [f"{'forward':<14}{forward['ms']:>10.2f} ms, {forward['batch_size']} pictures with their captions"]
    if sampling:
        lines.append(
            f"{'sampling':<14}{sampling['ms_per_token']:>10.3f} ms a token of one picture, "
            f"{sampling['guided_ms_per_token']:.3f} guided; not compiled"
        )
    lines.append(f"{'ms of layers':<14}{'attention':>10}{'MLP':>10}" + f"{'a token':>12}{'MLP':>10}" * bool(sampling))
    if sampling and torch.device(report["device"]).type == "cuda":
        lines[-1] += "  of steps that are not captured"
    for number, layer in enumerate(forward["layers"]):
        lines.append(f"{number + 1:>4} {layer['mask']:<9}{layer['attention_ms']:>10.3f}{layer['mlp_ms']:>10.3f}")
        if sampling and sampling["layers"]:
            of_token = sampling["layers"][number]
            lines[-1] += f"{of_token['attention_ms']:>12.4f}{of_token['mlp_ms']:>10.4f}"
    return lines


def _judged(samples: dict[str, Any]) -> list[str]:
    names = [name for name in JUDGED if name in samples["reconstructions"]]
    head = f"{samples['captions']} captions, {samples['n']} each; right, in %"
    lines = [f"{head:<34}" + "".join(f"{JUDGED[name]:>10}" for name in names) + f"{ALL:>12}"]
    lines.append(_row("drawings after the tokenizer", samples["reconstructions"], names))
    for row in samples["sampled"]:
        lines.append(_row(f"guidance {row['guidance_scale']:g}", row["all"], names))
        for by, best in row.get("best", {}).items():
            lines += [_row(f"    best of {among} by {by}", found, names) for among, found in best.items()]
    return lines


def _row(label: str, right: dict[str, dict[str, float]], names: list[str]) -> str:
    whole = right["correct"]
    parts = "".join(f"{100 * right[name]['value']:>10.1f}" for name in names)
    return f"{label:<34}{parts}{100 * whole['value']:>12.1f} ({100 * whole['low']:.1f} to {100 * whole['high']:.1f})"

"""The words of a card: each section out of what is known, and what is not known is said to be unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from octvideo.cli.card_facts import Facts, count_listed, own_name, shares_videos
from octvideo.evaluation.calibration import reliability
from octvideo.evaluation.metrics import wilson_interval
from octvideo.evaluation.per_class import class_figures
from octvideo.evaluation.report import Figure, confusion_matrix, figures, percent, percent_range
from octvideo.evaluation.scores import VideoScores
from octvideo.evaluation.several import SEVERAL_METRICS
from octvideo.inference.engine_times import EngineTime
from octvideo.models.costs import Cost
from octvideo.pages.card import Card, Section, Table
from octvideo.pages.page import counted
from octvideo.video import ViewSettings

_FEW_VIDEOS, _FEW_OF_CLASS = 1000, 20
_UNKNOWN = "unknown"
# Keys of model and trainer that say nothing of how weights were learnt.
_NOT_OF_TRAINING = {
    "network", "mean", "std", "views_per_chunk", "init_weights", "teacher", "on_unreadable", "channels_last", "fuse",
    "compile", "max_unreadable_fraction", "max_nonfinite_steps", "checkpoint_gradients",
}  # fmt: skip
_OF_TRAINER = ("max_epochs", "max_steps", "precision", "devices", "num_nodes", "accumulate_grad_batches",
               "gradient_clip_val", "sync_batchnorm")  # fmt: skip
_OF_TEACHER = ("distill_logits", "distill_temperature", "distill_features", "label_weight")
_OFF: tuple[Any, ...] = (None, False, 0, "none", [])
_OF_SGD, _OF_STEPS = ("momentum",), ("milestones", "gamma")
_OF_MIXING, _OF_BOTH_MIXTURES = ("mix_prob", "mix_switch_prob"), ("mixup_alpha", "cutmix_alpha")
_FACTORS = ("layer_decay", "backbone_lr_scale")  # 1 is off
_OF_DATA = {"sampler": "shuffle", "repeats": 1, "flip_labels": None}  # and what is off


def make_card(
    facts: Facts,
    *,
    costs: Mapping[str, Cost] | None,
    times: Sequence[EngineTime],
    machine: str,
    license: str | None,
    dataset: str | None,
    has_weights: bool,
) -> Card:
    """The card of a network.

    Args:
        facts: what is known of it.
        costs: of a view: "this network", and, beside an octave one, "ordinary"; None where they can't be counted.
        times: of the same networks; empty where nothing was measured.
        machine: that they were measured on, and when.
        license: of the weights; None where the author has stated none.
        dataset: what it was tested on, by name; None takes the name of the data's folder.
        has_weights: whether the weights lie beside the card.
    """
    measured = () if facts.known_scores is None else tuple(figures(facts.known_scores))
    root = facts.of_config("data", "root")
    dataset = dataset or (own_name(root) if isinstance(root, str) else None)
    sections = [
        _network(facts, costs),
        _training(facts, dataset),
        _test(facts, dataset),
        *_results(facts),
        *_time(facts, times, machine),
        _limits(facts, dataset, times),
        _use(facts, has_weights),
    ]
    return Card(
        facts.name, _said(facts, dataset), measured, tuple(sections), _metadata(facts, license, dataset, measured)
    )


def is_octave(facts: Facts) -> bool | None:
    """Whether it is an octave network; None where that is not known."""
    built = facts.block.get("network")
    if not built:
        return None
    alpha = built["init_args"].get("alpha", 0.0)
    return any(alpha.values() if isinstance(alpha, Mapping) else [alpha])


def _said(facts: Facts, dataset: str | None) -> str:
    kind = {True: "An octave network", False: "A network", None: "A network"}[is_octave(facts)]
    where = f", trained on {dataset}" if dataset and facts.config else ""
    classes = counted(len(facts.class_names), "class")
    if facts.scoring.has_several:
        return f"{kind} that names the actions in a video: any number of {classes}{where}."
    return f"{kind} that names the action in a video: one of {classes}{where}."


def _network(facts: Facts, costs: Mapping[str, Cost] | None) -> Section:
    views = facts.views
    rate = "as the video has them" if views.target_fps is None else f"at {views.target_fps:g} frames a second"
    rows = [
        ("input", f"clips of {views.clip_frames} frames, {_chosen(views)}, {rate}, "
                  f"{views.crop_px} x {views.crop_px} pixels"),
        ("pixels", f"scaled to [0, 1], mean {_list(facts.mean)}, deviation {_list(facts.std)}"),
        ("output", counted(len(facts.class_names), "class")),
        *_named(facts),
    ]  # fmt: skip
    built = facts.block.get("network")
    if facts.export:
        export = facts.export
        versions = ", ".join(f"{name} {version}" for name, version in export["versions"].items())
        rows = [
            ("kind", f"exported for {export['engine']} in {export['precision']}, on {export['machine']}"),
            ("made with", f"octvideo {export['octvideo']}, {versions}"),
            ("made of", own_name(export["source"])),
            *rows,
        ]
        said = "An exported model does not say how its network was built or trained."
        return Section("The network", (said,), table=Table(("property", "value"), tuple(rows), left=2))
    if not built:
        rows.insert(0, ("builder", f"{_UNKNOWN}: not one of octvideo.models"))
    else:
        init_args = built["init_args"]
        alpha = init_args.get("alpha", 0.0)
        own = {
            key: value for key, value in init_args.items() if key not in ("alpha", "num_classes") and value is not None
        }
        rows = [
            ("builder", built["class_path"]),
            ("share of low channels (alpha)",
             f"of its own for each of {len(alpha)} layers or blocks: {_range(alpha)}" if isinstance(alpha, Mapping)
             else f"{alpha:g}" + (" (an ordinary network)" if not alpha else "")),
            ("other arguments", ", ".join(f"{key} {value}" for key, value in own.items())),
            *rows,
        ]  # fmt: skip
    if costs is not None:
        own_cost = costs["this network"]
        share = ""
        if "ordinary" in costs:
            part = own_cost.multiply_adds / costs["ordinary"].multiply_adds
            share = f", {100 * part:.0f} % of the ordinary network's ({costs['ordinary'].multiply_adds / 1e9:.3g} G)"
        total = own_cost.multiply_adds * views.num_views / 1e9
        rows += [
            ("parameters", f"{own_cost.parameters:,}"),
            ("multiply-adds of a view", f"{own_cost.multiply_adds / 1e9:.3g} G{share}"),
            ("multiply-adds of a video", f"{total:.3g} G in {views.name} views"),
        ]
    return Section("The network", table=Table(("property", "value"), tuple(rows), left=2))


def _training(facts: Facts, dataset: str | None) -> Section:
    texts: list[str] = []
    if facts.conversion:
        texts.append("Made octave by octvideo convert out of a trained ordinary network, without labels. It measured:")
        items = [line.removeprefix("- ") for line in facts.conversion if not line.startswith("|")]
        cells = [
            tuple(cell.strip() for cell in line.strip("|").split("|")) for line in facts.conversion if line[0] == "|"
        ]
        table = (
            Table(cells[0], tuple(row for row in cells[2:] if len(row) == len(cells[0]))) if len(cells) > 2 else None
        )
        unknown = "How that network was trained is unknown: this run does not record it."
        return Section("How it was made", (*texts, unknown), table=table, items=tuple(items))
    if not facts.config:
        texts.append("Unknown: there is no config.yaml of a training beside the weights.")
        return Section("How it was trained", tuple(texts))
    listed = count_listed(facts, "train")
    train = facts.of_config("data", "train")
    videos = f"{_UNKNOWN} number" if listed is None else f"{listed:,}, as the list has them now"
    start, teacher = facts.of_config("model", "init_weights"), facts.of_config("model", "teacher")
    rows = [
        ("data", f"{dataset or _UNKNOWN}, {own_name(train) if train else 'list ' + _UNKNOWN} (videos: {videos})"),
        ("started from", own_name(start) if start else "random weights"),
        *([("teacher", own_name(teacher))] if teacher else []),
        ("weights", (facts.saved or _UNKNOWN) + _averaged(facts)),
        ("batch", f"{_of(facts, 'data', 'batch_size')} clips a process"),
        *_settings(facts, bool(teacher)),
        *(
            (key, _value(value))
            for key, off in _OF_DATA.items()
            if (value := facts.of_config("data", key)) not in (None, off)
        ),
        ("augmentation", _pairs(facts.of_config("data", "augment"))),
        ("seed", str(facts.config.get("seed_everything", _UNKNOWN))),
        ("octvideo", str(facts.block.get("version", _UNKNOWN))),
        ("hardware and duration", f"{_UNKNOWN}: a run does not record them"),
    ]
    return Section("How it was trained", table=Table(("setting", "value"), tuple(rows), left=2))


def _settings(facts: Facts, has_teacher: bool) -> list[tuple[str, str]]:
    """Settings of the model and the trainer that a config states and that are not off, by their names in it."""
    model, trainer = facts.config.get("model") or {}, facts.config.get("trainer") or {}
    left_out = _NOT_OF_TRAINING | {"seed"} | (set() if has_teacher else set(_OF_TEACHER))
    left_out |= set() if model.get("class_weights") == "effective" else {"class_weights_beta"}
    left_out |= set(_OF_SGD) if model.get("optimizer") != "sgd" else set()
    left_out |= set(_OF_STEPS) if model.get("schedule") != "step" else set()
    mixtures = sum(bool(model.get(key)) for key in _OF_BOTH_MIXTURES)
    left_out |= set(_OF_MIXING[mixtures:])  # one or the other: nothing switches
    left_out |= {key for key in _FACTORS if model.get(key) == 1} | (set() if model.get("ema_decay") else {"ema_warmup"})
    rows = [(key, _value(value)) for key, value in model.items() if key not in left_out and value not in _OFF]
    return rows + [(key, _value(trainer[key])) for key in _OF_TRAINER if trainer.get(key) not in (*_OFF, -1)]


def _test(facts: Facts, dataset: str | None) -> Section:
    if facts.scores is None:
        why = "The test that octvideo export made compares it with eager PyTorch alone: it measures no accuracy."
        none = "It was not tested, or its results are not at hand: nothing is known of its accuracy."
        items = (*facts.doubts, *([_export_check(facts)] if facts.export else []))
        return Section("How it was tested", (why if facts.export else none,), items=items)
    known = facts.known_scores
    protocol = facts.test.get("protocol") or {}
    asked = protocol.get("views")
    views = facts.views if not asked else type(facts.views).from_dict(asked)
    said = [] if asked else ["The test did not record its views; these are the network's own, which a test takes."]
    videos = f"{len(facts.scores):,}" + ("" if known is None else f", {len(known):,} of them with a known label")
    listed = own_name(protocol["videos"]) if protocol.get("videos") else f"list {_UNKNOWN}"
    decoder = protocol.get("decoder")
    unreadable = facts.test.get("unreadable")
    rows = [
        ("videos", videos),
        ("data", f"{dataset or _UNKNOWN}, {listed}"),
        ("views", f"{views.num_views} a video: {views.num_clips} clips over its length x {views.num_crops} crops"),
        ("frames", f"short side {views.short_side_px} pixels, crops of {views.crop_px}; {views.clip_frames} frames, "
                   f"{_chosen(views)}"),
        ("short videos", {"repeat_last": "the last frame is repeated", "loop": "frames are repeated from the first"}
                         [views.short_video]),
        ("decoder", {None: _UNKNOWN, "auto": "PyAV (FFmpeg)"}.get(decoder, str(decoder))),
        ("precision", str(protocol.get("precision", _UNKNOWN))),
        ("scores", f"{facts.scoring.function} of each view, averaged over views"),
        ("videos that could not be read", _UNKNOWN if unreadable is None else f"{int(unreadable)}, in no figure"),
    ]  # fmt: skip
    return Section(
        "How it was tested", tuple(said), table=Table(("step", "how"), tuple(rows), left=2), items=facts.doubts
    )


def _export_check(facts: Facts) -> str:
    check = facts.export["check"]
    return (
        f"On {counted(check['clips'], 'clip')} its scores differ from eager PyTorch's by "
        f"{check['max_score_difference']:.2g} at most; the best class is the same in {check['same_best_class']}."
    )


def _results(facts: Facts) -> list[Section]:
    known = facts.known_scores
    if known is None:
        return []
    if known.truth is not None:
        return [_classes_of_several(known)]
    counts = confusion_matrix(known)
    rows = []
    for number, total in enumerate(counts.sum(1).tolist()):
        right = int(counts[number, number])
        share = (percent(right / total), percent_range(wilson_interval(right, total))) if total else ("not tested", "")
        rows.append((known.class_names[number], f"{total:,}", *share))
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:5]
    mixed = [(int(t), int(p)) for t, p in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[t, p]]
    items = tuple(
        f"{known.class_names[t]} taken for {known.class_names[p]}: {counts[t, p]:,} of {counts[t].sum():,}"
        for t, p in mixed
    )
    said = ("Mixed up most often:",) if items else ()
    per_class = Section(
        "Classes", table=Table(("class", "videos", "top-1", "95 % interval"), tuple(rows)), texts=(), items=()
    )
    confusions = [Section("Confusions", said, items=items)] if items else []
    return [per_class, *confusions, _calibration(facts)]


def _classes_of_several(known: VideoScores) -> Section:
    found = class_figures(known)
    rows = [
        (one.name, f"{one.videos:,}", *map(percent, (one.precision, one.recall, one.f1, one.average_precision)))
        for one in found
    ]
    reached = "its threshold" if known.thresholds is not None else "50 %"
    said = f"A video is taken for each class whose score reaches {reached}."
    header = ("class", "videos", "precision", "recall", "F1", "average precision")
    return Section("Classes", (said,), table=Table(header, tuple(rows)))


def _calibration(facts: Facts) -> Section:
    known = facts.known_scores
    assert known is not None
    found = reliability(known)
    gap = found.confidence - found.accuracy
    low, high = wilson_interval(round(found.accuracy * found.videos), found.videos)
    if low <= found.confidence <= high:
        words = "which is within the interval of top-1"
    else:
        words = "more than is right: it is too sure" if gap > 0 else "less than is right: it is too unsure"
    said = (
        f"The best class has a score of {percent(found.confidence)} on average, {words}. "
        f"Expected calibration error: {percent(found.ece)} ({found.num_bins} bins of equal width)."
    )
    few = "With so few videos a bin's share is uncertain, and the error comes out larger than it is."
    rows = tuple(
        (
            percent_range((one.low, one.high)),
            f"{one.videos:,}",
            *(percent(one.confidence), percent(one.accuracy), percent_range(one.interval)),
        )
        for one in found.bins
    )
    table = Table(("score", "videos", "mean score", "right", "95 % interval"), rows)
    return Section("Calibration", (said, *([few] if found.videos < _FEW_VIDEOS else [])), chart=found, table=table)


def _time(facts: Facts, times: Sequence[EngineTime], machine: str) -> list[Section]:
    if facts.export:
        check = facts.export["check"]
        when = (
            f"When it was exported, {1000 * check['seconds_per_view']:.1f} ms a view in {check['computed_in']}, by one "
            "call. Nothing was measured for this card."
        )
        return [Section("Time", (when,))]
    if not times:
        return [Section("Time", ("Not measured for this card.",))]
    names = list(times[0].seconds)
    header = ["engine", *(f"{name}, ms a view" for name in names), f"ms a video ({facts.views.name} views)"]
    if len(names) > 1:
        header.append("of the ordinary")
    rows = []
    for one in times:
        own = one.seconds["this network"]
        cells = [value if isinstance(value, str) else _ms(value) for value in (one.seconds[name] for name in names)]
        cells.append("" if isinstance(own, str) else _ms(own * facts.views.num_views))
        if len(names) > 1:
            other = one.seconds["ordinary"]
            is_both = not (isinstance(own, str) or isinstance(other, str))
            cells.append(f"{100 * own / other:.0f} %" if is_both else "")  # type: ignore[operator]
        rows.append((str(one.way), *cells))
    said = [f"{machine}: the least of some calls, of the networks alone. Decoding and cutting come on top."]
    if len(names) > 1:
        said.append("The ordinary network has the same structure, and untrained weights: only its time is compared.")
    return [Section("Time", tuple(said), table=Table(tuple(header), tuple(rows)))]


def _limits(facts: Facts, dataset: str | None, times: Sequence[EngineTime]) -> Section:
    known = facts.known_scores
    items = []
    if known is None:
        items.append("Its accuracy is unknown: try it on videos of your own before you rely on it.")
    else:
        items.append(
            f"It was tested on {len(known):,} videos of {dataset or 'one data set'} and on nothing else. How it does "
            "on other cameras, places, people and lengths of video is unknown."
        )
        if len(known) < _FEW_VIDEOS:
            first = next(figure for figure in figures(known) if figure.interval is not None)
            items.append(f"The test is small: the 95 % interval of {first.name} is {percent_range(first.interval)}.")
        totals = confusion_matrix(known).sum(1) if known.truth is None else known.truth.sum(0)
        few = [name for name, total in zip(known.class_names, totals, strict=True) if 0 < total < _FEW_OF_CLASS]
        none = [name for name, total in zip(known.class_names, totals, strict=True) if not total]
        if few:
            items.append(f"{counted(len(few), 'class')} had fewer than {_FEW_OF_CLASS} test videos: {_some(few)}.")
        if none:
            items.append(f"{counted(len(none), 'class')} had no test video: {_some(none)}.")
        if shares_videos(facts):
            items.append(
                "The weights were chosen by their accuracy on the videos of the test, so that its figures are too good."
            )
        if facts.known_scores is not None and len(facts.scores or ()) > len(known):
            items.append(f"{len(facts.scores or ()) - len(known):,} more videos had no label and are in no figure.")
        if shares_videos(facts) and facts.scoring.thresholds is not None:
            items.append("Its thresholds were fitted on them, too.")
    if facts.scoring.has_several:
        items.append("Of what is none of its classes it says nothing.")
    else:
        items.append("It names one of its classes for any video, also for one that shows none of them.")
    if is_octave(facts):
        items.append(
            "What octave layers change in accuracy was not measured here: an ordinary network trained alike would tell."
        )
    if times:
        items.append("Times are of one machine; they say little of others.")
    items.append("Whether errors differ between groups of people was not measured.")
    return Section("Limits", items=tuple(items))


def _use(facts: Facts, has_weights: bool) -> Section:
    if facts.export:
        return Section(
            "Use", code=f'from octvideo.inference import Predictor\n\npredictor = Predictor.from_export("{facts.name}")'
        )
    if not has_weights:
        return Section("Use", ("The weights are not beside this card: octvideo card RUN --hub writes them.",))
    code = (
        'import octvideo\n\npredictor = octvideo.from_pretrained("hf:USER/NAME")  # or this folder\n'
        'print(predictor.predict("video.mp4").top)'
    )
    return Section("Use", ("Needs octvideo, and for a name of the hub octvideo[hub].",), code=code)


def _metadata(facts: Facts, license: str | None, dataset: str | None, measured: Sequence[Figure]) -> dict[str, Any]:
    """What the hub reads; see https://huggingface.co/docs/hub/model-cards."""
    found: dict[str, Any] = {} if license is None else {"license": license}
    tags = ["octvideo", "pytorch", "video-classification", "action-recognition"]
    if is_octave(facts):
        tags.append("octave-convolution")
    found |= {"library_name": "octvideo", "pipeline_tag": "video-classification", "tags": tags}
    if measured:
        kinds = {SEVERAL_METRICS[name]: "mean_average_precision" for name in ("map", "map_micro")}
        found["metrics"] = list(dict.fromkeys(kinds.get(f.name, "accuracy") for f in measured))
        task = {"type": "video-classification", "name": "Video classification"}
        data = {"type": _slug(dataset or "unknown"), "name": dataset or _UNKNOWN}
        values = [
            {"type": kinds.get(f.name, "accuracy"), "value": round(f.value, 6), "name": f.name}
            for f in measured
            if f.value == f.value
        ]
        found["model-index"] = [{"name": facts.name, "results": [{"task": task, "dataset": data, "metrics": values}]}]
    return found


# -- words ---------------------------------------------------------------------------------------------------


def _slug(text: str) -> str:
    return "-".join("".join(char if char.isalnum() else " " for char in text.lower()).split()) or "unknown"


def _named(facts: Facts) -> list[tuple[str, str]]:
    """How labels come of scores, where that is not the best class, and what scores were cooled by."""
    scoring = facts.scoring
    if not scoring.has_several:
        cooled = f"{scoring.temperature:.4g}, that scores are cooled by"
        return [("temperature", cooled)] if scoring.temperature != 1 else []
    held = scoring.thresholds
    if held is None:
        return [("labels", "scores of 0 to 1 for each class; it has no thresholds")]
    return [("labels", f"a threshold for each class, {min(held):.2f} to {max(held):.2f}, fitted in validation")]


def _averaged(facts: Facts) -> str:
    held = facts.block.get("averaged")
    return "" if not held else f", a moving average (EMA) with decay {held['decay']:g} over {held['updates']:,} steps"


def _chosen(views: ViewSettings) -> str:
    """Which frames make a clip."""
    if views.sampling == "dense":
        return f"each {_nth(views.frame_stride)}"
    rule = {"segments": "TSN", "segments_ssv2": "PySlowFast for Something-Something v2"}[views.sampling]
    return f"one of each of {views.clip_frames} equal parts of the video (as {rule})"


def _nth(stride: int) -> str:
    return (
        "one"
        if stride == 1
        else f"{stride}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(stride if stride < 20 else stride % 10, 'th') }"
    )


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _range(shares: Mapping[str, float]) -> str:
    return f"{min(shares.values()):.3g} to {max(shares.values()):.3g}"


def _of(facts: Facts, part: str, key: str) -> str:
    value = facts.of_config(part, key)
    return _UNKNOWN if value is None else str(value)


def _pairs(values: Any) -> str:
    if not isinstance(values, Mapping):
        return _UNKNOWN
    return ", ".join(f"{key} {_value(value)}" for key, value in values.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _ms(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"

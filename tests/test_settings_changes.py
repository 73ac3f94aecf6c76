import pytest

from settings_changes import changed_settings, flat

SAVED = {
    "run": "runs/a",
    "max_skipped": 10,
    "trainer": {"max_steps": 10, "logger": None, "default_root_dir": "runs/a"},
    "model": {
        "adversarial": None,
        "vae": {"quantizer": "vq", "quantizer_options": {}},
        "optim": {"lr": 0.1},
        "reconstruction": "l1",
    },
    "data": {"loading": {"workers": 2, "batch_size": 8}, "image_size": 64},
}


def with_change(name: str, value: object) -> dict:
    *parents, last = name.split(".")
    changed = inner = {**SAVED}
    for parent in parents:
        inner[parent] = {**inner[parent]}
        inner = inner[parent]
    inner[last] = value
    return changed


def test_nothing_has_changed():
    assert changed_settings(SAVED, with_change("run", "runs/a"), SAVED) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run", "runs/b"),
        ("trainer.default_root_dir", "runs/b"),
        ("max_skipped", 5),
        ("data.loading.workers", 0),
        ("trainer.logger", {"class_path": "CSVLogger"}),
    ],
)
def test_what_changes_no_weight_is_free(name, value):
    assert changed_settings(SAVED, with_change(name, value), SAVED) == []


def test_what_changes_the_training_is_said():
    assert changed_settings(SAVED, with_change("trainer.max_steps", 20), SAVED) == [
        "trainer.max_steps was 10 and is 20"
    ]
    assert changed_settings(SAVED, with_change("model.optim.lr", 1), SAVED) == ["model.optim.lr was 0.1 and is 1"]
    assert changed_settings(SAVED, with_change("model.adversarial", {"start_step": 3}), SAVED) == [
        "model.adversarial.start_step was None and is 3"
    ]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("model.vae.quantizer", "fsq", "model.vae.quantizer was vq and is fsq"),
        ("model.vae.quantizer_options", {"decay": 0.9}, "model.vae.quantizer_options.decay was None and is 0.9"),
        ("model.reconstruction", "l2", "model.reconstruction was l1 and is l2"),
        ("data.image_size", 32, "data.image_size was 64 and is 32"),
    ],
)
def test_what_the_weights_mean_is_refused(name, value, said):
    with pytest.raises(ValueError, match=f"the checkpoint is of another model: {said}$"):
        changed_settings(SAVED, with_change(name, value), SAVED)


@pytest.mark.parametrize("name", ["model.vae.new", "model.optim.new", "trainer.new", "model.perceptual"])
@pytest.mark.parametrize("value", [3, {"inner": 3}])
def test_a_setting_that_only_one_version_has_is_no_change_but_where_it_was_set(name, value):
    now = with_change(name, value)
    assert changed_settings(SAVED, now, defaults=now) == []
    assert changed_settings(now, SAVED, defaults=SAVED) == []
    inner = f"{name}.inner" if isinstance(value, dict) else name
    for defaults in (SAVED, with_change(name, None), with_change(name, 4)):
        said = [f"{inner} is 3, of which the checkpoint's version knew nothing"]
        assert changed_settings(SAVED, now, defaults) == said


@pytest.mark.parametrize(("before", "after"), [("plateau", "cosine"), ("none", "plateau")])
def test_the_decay_of_a_plateau_does_not_change(before, after):
    saved, now = (with_change("model.optim.decay", decay) for decay in (before, after))
    with pytest.raises(ValueError, match=f"^model.optim.decay was {before} and is {after}: where a plateau"):
        changed_settings(saved, now, defaults=now)


@pytest.mark.parametrize("decay", ["plateau", "cosine", None])
def test_warm_up_changes_where_it_takes_effect(decay):
    """A tokenizer's has no decay."""
    optim = {"warmup_steps": 3} | ({"decay": decay} if decay else {})
    saved, now = with_change("model.optim", optim), with_change("model.optim", optim | {"warmup_steps": 4})
    said = "model.optim.warmup_steps was 3 and is 4"
    if decay == "plateau":
        with pytest.raises(ValueError, match=f"^{said}: where a plateau"):
            changed_settings(saved, now, defaults=now)
    else:
        assert changed_settings(saved, now, defaults=now) == [said]


def test_what_was_there_and_is_off_now_is_said():
    saved = with_change("model.adversarial", {"start_step": 3})
    assert "model.adversarial.start_step was 3 and is None" in changed_settings(saved, SAVED, SAVED)


def test_recomputing_activations_is_no_other_prior():
    saved = {"model": {"prior": {"checkpoint_activations": False, "n_layer": 2}}}
    now = {"model": {"prior": {"checkpoint_activations": True, "n_layer": 2}}}
    assert changed_settings(saved, now, SAVED) == ["model.prior.checkpoint_activations was False and is True"]


def test_flat():
    assert flat({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "d": [2]}

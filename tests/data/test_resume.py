"""A run that is resumed under Lightning's Trainer sees exactly the batches that it would have seen."""

import pytest
import pytorch_lightning as pl
import torch

from data.datamodule import PriorData
from data.text import TextTokenizer
from tests.data.fakes import Fake, epochs_of, prior_data, same, tokenizer_data

# 36 training samples in batches of 4: 9 batches an epoch.


class Watch(pl.LightningModule):
    """Notes the keys of every batch it has trained on; stops in the middle of step `interrupt_at`."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[list[str]] = []
        self.interrupt_at = interrupt_at

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        if self.interrupt_at is not None and len(self.trained) == self.interrupt_at:
            raise InterruptedError
        return self.weight * batch["images"].mean()

    def on_train_batch_end(self, outputs, batch: dict, batch_idx: int) -> None:
        self.trained.append(batch["keys"])

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveOnException(pl.Callback):
    def __init__(self, path) -> None:
        self.path = path

    def on_exception(self, trainer, module, exception) -> None:
        trainer.save_checkpoint(self.path)


def trainer_of(folder, callbacks=(), **settings) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(
        default_root_dir=folder, accelerator="cpu", callbacks=list(callbacks), **({"max_epochs": 3} | quiet | settings)
    )


def expected_keys(epochs: int) -> list[list[str]]:
    return [batch["keys"] for batch in epochs_of(tokenizer_data(), epochs)]


pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|ModelCheckpoint|Checkpoint directory|logging).*")


def test_a_run_sees_the_epochs_in_order(tmp_path):
    watch = Watch()
    trainer_of(tmp_path, enable_checkpointing=False).fit(watch, tokenizer_data())
    assert watch.trained == expected_keys(3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 5, 9, 12, 18])
def test_resuming_goes_on_with_the_next_batch(tmp_path, step, workers):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=step, save_top_k=-1)
    trainer_of(tmp_path, [saving], max_epochs=2).fit(Watch(), tokenizer_data())
    watch = Watch()
    checkpoint = tmp_path / f"step={step}.ckpt"
    trainer_of(tmp_path, enable_checkpointing=False).fit(watch, tokenizer_data(workers=workers), ckpt_path=checkpoint)
    assert watch.trained == expected_keys(3)[step:]


def test_resuming_from_the_end_of_an_epoch(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    for on_train_epoch_end in (True, False):
        saving = pl.callbacks.ModelCheckpoint(
            tmp_path / str(on_train_epoch_end),
            filename="{epoch}",
            save_top_k=-1,
            save_on_train_epoch_end=on_train_epoch_end,
        )
        trainer_of(tmp_path, [saving], max_epochs=2).fit(Watch(), tokenizer_data())
        watch = Watch()
        checkpoint = tmp_path / str(on_train_epoch_end) / "epoch=0.ckpt"
        trainer_of(tmp_path, enable_checkpointing=False).fit(watch, tokenizer_data(), ckpt_path=checkpoint)
        assert watch.trained == expected_keys(3)[9:]


def test_resuming_from_a_validation_in_the_middle(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, save_on_train_epoch_end=False)
    trainer_of(tmp_path, [saving], max_epochs=1, val_check_interval=4).fit(Watch(), tokenizer_data())
    for step in (4, 8):
        watch = Watch()
        trainer = trainer_of(tmp_path, enable_checkpointing=False, val_check_interval=4)
        trainer.fit(watch, tokenizer_data(), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert watch.trained == expected_keys(3)[step:]


@pytest.mark.parametrize("step", [9, 12, 14])
def test_a_run_that_ended_by_max_steps_can_be_made_longer(tmp_path, step):
    trainer = trainer_of(tmp_path, max_steps=step, enable_checkpointing=False)
    trainer.fit(Watch(), tokenizer_data())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    watch = Watch()
    longer = trainer_of(tmp_path, max_epochs=-1, max_steps=25, enable_checkpointing=False)
    longer.fit(watch, tokenizer_data(), ckpt_path=tmp_path / "end.ckpt")
    assert watch.trained == expected_keys(3)[step:25]


@pytest.mark.parametrize("step", [0, 3, 9, 13])
def test_an_interrupted_step_is_done_again(tmp_path, step):
    path = tmp_path / "interrupted.ckpt"
    with pytest.raises(InterruptedError):
        trainer_of(tmp_path, [SaveOnException(path)]).fit(Watch(interrupt_at=step), tokenizer_data())
    watch = Watch()
    trainer_of(tmp_path, enable_checkpointing=False).fit(watch, tokenizer_data(), ckpt_path=path)
    assert watch.trained == expected_keys(3)[step:]


class AskingForSteps(Watch):
    """As a system whose step sizes follow the length of the run: Lightning makes its loader then, before it knows where
    the run goes on."""

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches == 27
        return super().configure_optimizers()


def test_resuming_again_and_again(tmp_path):
    trained, path = [], None
    for steps in (2, 5, 1, 4, 9):
        watch, begun = AskingForSteps(interrupt_at=steps), path
        path = tmp_path / f"{len(trained)}.ckpt"
        with pytest.raises(InterruptedError):
            trainer_of(tmp_path, [SaveOnException(path)]).fit(watch, tokenizer_data(), ckpt_path=begun)
        trained += watch.trained
    watch = AskingForSteps()
    trainer_of(tmp_path, enable_checkpointing=False).fit(watch, tokenizer_data(), ckpt_path=path)
    assert trained + watch.trained == expected_keys(3)


def test_epochs_that_end_early_are_not_taken_up_again(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    through = Watch()
    trainer_of(tmp_path, [saving], limit_train_batches=4).fit(through, tokenizer_data())
    whole = expected_keys(3)
    assert through.trained == whole[:4] + whole[9:13] + whole[18:22]
    for step in (2, 4, 6):
        watch = Watch()
        trainer = trainer_of(tmp_path, limit_train_batches=4, enable_checkpointing=False)
        trainer.fit(watch, tokenizer_data(), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert watch.trained == through.trained[step:]


def test_resuming_with_accumulated_gradients(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    trainer_of(tmp_path, [saving], accumulate_grad_batches=2).fit(Watch(), tokenizer_data())
    watch = Watch()
    trainer = trainer_of(tmp_path, accumulate_grad_batches=2, enable_checkpointing=False)
    trainer.fit(watch, tokenizer_data(), ckpt_path=tmp_path / "step=2.ckpt")
    assert watch.trained == expected_keys(3)[4:]


def test_overfit_batches_is_refused_with_a_reason(tmp_path):
    with pytest.raises(ValueError, match="overfit_batches would replace the order"):
        trainer_of(tmp_path, overfit_batches=2, enable_checkpointing=False).fit(Watch(), tokenizer_data())


def test_resuming_in_the_middle_with_another_batch_size_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=3, enable_checkpointing=False)
    trainer.fit(Watch(), tokenizer_data())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    with pytest.raises(ValueError, match="global_batch_size was 4 and is 6"):
        trainer_of(tmp_path, enable_checkpointing=False).fit(
            Watch(), tokenizer_data(batch_size=6), ckpt_path=tmp_path / "end.ckpt"
        )


def test_resuming_on_other_data_is_refused_in_the_middle_of_an_epoch(tmp_path):
    """As many samples of the same keys, but other captions."""
    for step in (3, 9):
        trainer = trainer_of(tmp_path, max_steps=step, enable_checkpointing=False)
        trainer.fit(Watch(), tokenizer_data())
        trainer.save_checkpoint(tmp_path / f"{step}.ckpt")
    other = tokenizer_data(Fake(word="object"))
    with pytest.raises(ValueError, match=r"middle of an epoch: data was \w{16} and is \w{16}\. Set it back"):
        trainer_of(tmp_path, enable_checkpointing=False).fit(Watch(), other, ckpt_path=tmp_path / "3.ckpt")
    trainer = trainer_of(tmp_path, enable_checkpointing=False, max_epochs=2)
    watch = Watch()
    trainer.fit(watch, tokenizer_data(Fake(word="object")), ckpt_path=tmp_path / "9.ckpt")
    assert watch.trained == expected_keys(2)[9:]


def after_an_epoch() -> tuple[PriorData, dict]:
    data = prior_data()
    data.setup()
    list(data.train_dataloader())
    return data, data.state_dict()


def test_resuming_in_the_middle_goes_on_with_the_next_captions():
    data, again = prior_data(), prior_data()
    data.setup()
    again.setup()
    iterator = iter(data.train_dataloader())
    next(iterator)
    again.load_state_dict(data.state_dict())
    assert same(next(iter(again.train_dataloader())), next(iterator))


def test_other_captions_are_tokenized_as_the_checkpoint_did(caplog):
    data, state = after_an_epoch()
    other = prior_data(Fake(44, word="zebra"), text={"bpe_dropout": 0})
    other.setup()
    assert other.text_tokenizer.fingerprint != data.text_tokenizer.fingerprint, "captions decide"
    other.load_state_dict(state)
    assert f"the checkpoint's goes on, {data.text_tokenizer.fingerprint}" in caplog.text
    assert other.text_tokenizer.to_json() == data.text_tokenizer.to_json()
    for batch in (next(iter(other.train_dataloader())), next(iter(other.val_dataloader()))):
        assert torch.equal(batch["text_tokens"], data.text_tokenizer.encode_batch(batch["captions"], 16).text_tokens)
    assert other.state_dict()["text_tokenizer"] == state["text_tokenizer"]


def test_a_text_tokenizer_that_was_given_is_not_overruled(tmp_path):
    _, state = after_an_epoch()
    TextTokenizer.train(["something else entirely"] * 3, 270).save(tmp_path / "tokenizer.json")
    given, older = prior_data(text={"tokenizer": str(tmp_path)}), prior_data(Fake(44))
    given.setup()
    older.setup()
    with pytest.raises(ValueError, match=r"text tokenizer \w{16}, this run has \w{16}: give the former's"):
        given.load_state_dict(state)
    del state["text_tokenizer_json"]
    with pytest.raises(ValueError, match=r"text tokenizer \w{16}, this run has \w{16}: give the former's"):
        older.load_state_dict(state)

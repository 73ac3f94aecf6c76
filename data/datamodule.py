"""Lightning datamodules: `TokenizerData` gives pictures, `PriorData` captions with pictures or with codes.

What a training batch holds is a pure function of (seed, epoch, position), see order.py. A checkpoint holds the
position, so that a resumed run goes on with the next batch. Validation sees the evaluation crop and the first caption,
in a fixed order. No flag of the Trainer is needed with several devices: the order is shared out here.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from data import transforms
from data.filters import FilteredSource, Filters
from data.opening import check_drawn_large_enough, check_one_given, open_captioned, open_pictures
from data.order import EpochLoader, EpochOrder, Progress, check_same
from data.rejects import LateRejects, Rejected
from data.samples import CaptionReader, CodesReader, PictureReader, Reader, Samples, collate
from data.settings import Loading, TextConfig
from data.shapes import ShapesConfig
from data.shards.config import ShardsConfig
from data.shards.mixture import MixedOrder
from data.shards.source import ShardsSource
from data.shards.stream import StreamedShards
from data.shards.streaming import StreamOrder, StreamSamples
from data.source import Source
from data.split import Keyed, fingerprint, in_places, split_by_key, spread
from data.text import TextTokenizer
from data.text_cache import trained_once

log = logging.getLogger(__name__)
PICTURES_READ_FOR_TEXT = 100_000  # whose captions train the BPE: enough for 16,384 entries
PICTURES_COUNTED = 2_048  # whose captions are looked at for those that are too long: each is a read of its own
PLACES_COUNTED = 64  # where they lie, in a row each: of codes, a shard is mapped for each place


class CaptionedData(pl.LightningDataModule):
    """What both datamodules share: split, order, loaders, and where a checkpoint goes on.

    `source`, `train_indices` and `val_indices` (int64, into the source) are there after `setup`.
    """

    source: Keyed
    train_indices: Tensor
    val_indices: Tensor

    def __init__(self, loading: Loading) -> None:
        super().__init__()
        self.loading = loading
        self._ready = False
        self._train_loader: EpochLoader | None = None
        self._resume: dict[str, int] | None = None

    def open_source(self) -> Keyed:
        """The samples."""
        raise NotImplementedError  # each kind of data has its own

    def readers(self, source: Keyed, *, training: bool) -> list[Reader]:
        """What makes up a sample of a source, in training or in validation."""
        raise NotImplementedError  # each kind of data has its own

    def setup(self, stage: str | None = None) -> None:
        """Open the source and split it; once. Raises ValueError where the validation split is empty."""
        if not self._ready:
            self._open()
            self._ready = True

    def _open(self) -> None:
        self.source = self.open_source()
        train, val = split_by_key(self.source, self.loading.val_fraction)
        if len(val) == 0:
            raise ValueError(
                f"no validation samples among {len(self.source)} (val_fraction={self.loading.val_fraction}): raise "
                "data.loading.val_fraction, or mark rows with 'val' in a column named split"
            )
        self.train_indices = train
        self.val_indices = spread(val, self.loading.val_count)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the samples, for a model's record of what it was trained on.

        Made once, for all captions (and codes) are read for it: every checkpoint holds it.
        """
        return fingerprint(self.source)

    def train_dataloader(self) -> EpochLoader:
        """Raises ValueError where the training split is smaller than a batch, and where `load_state_dict` was given the
        middle of an epoch of other data."""
        order = self._order(self.train_indices, shuffle=True)
        count = order.samples if isinstance(order, StreamOrder) else len(self.train_indices)
        if count == 0:
            raise ValueError(f"no training samples among {len(self.source)}: all are of the split 'val' or 'test'")
        if len(order) == 0:
            raise ValueError(
                f"{count} training samples do not fill one batch of {order.global_batch_size} over "
                "all devices: lower data.loading.batch_size"
            )
        self._train_loader = self._loader(order, training=True, progress=self._progress if self.trainer else None)
        if self._resume is not None:
            self._check_same_data(self._resume)
            self._train_loader.load_state_dict(self._resume)
            self._resume = None
        elif self.trainer:
            self._train_loader.epoch = self.trainer.current_epoch
        return self._train_loader

    def val_dataloader(self) -> EpochLoader:
        return self._loader(self._order(self.val_indices, shuffle=False), training=False)

    def _order(self, indices: Tensor, *, shuffle: bool) -> EpochOrder | StreamOrder:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        settings = {
            "seed": self.loading.seed,
            "batch_size": self.loading.batch_size,
            "rank": rank,
            "world_size": world_size,
        }
        if shuffle and isinstance(self.source, StreamedShards):
            return StreamOrder(self.source.config.samples, workers=self.loading.workers, **settings)
        whole = self.source.source if isinstance(self.source, FilteredSource) else self.source
        if shuffle and isinstance(whole, ShardsSource) and whole.config.weights is not None:
            return MixedOrder(self.source.by_set(indices), whole.config.weights, **settings)
        return EpochOrder(indices, shuffle=shuffle, **settings)

    def _loader(
        self, order: EpochOrder | StreamOrder, *, training: bool, progress: Callable[[], Progress] | None = None
    ) -> EpochLoader:
        if self.trainer and self.trainer.overfit_batches:
            raise ValueError("overfit_batches would replace the order of the data: train on fewer samples instead")
        streamed = isinstance(order, StreamOrder)
        if streamed:
            dataset = StreamSamples(self.source, order, partial(self.readers, training=training))
        else:
            readers = self.readers(self.source, training=training)
            dataset = Samples(self.source, order.indices, self.loading.seed, readers)
        return EpochLoader(
            dataset,
            order,
            progress,
            self._late_rejects.add,
            collate_fn=collate,
            num_workers=self.loading.workers,
            persistent_workers=self.loading.workers > 0 and not streamed,  # which are told the epoch when they start
            pin_memory=torch.cuda.is_available(),
        )

    @cached_property
    def _late_rejects(self) -> LateRejects:
        report = self.loading.report and Path(self.loading.report)
        path = report.with_name(f"{report.stem}-found.jsonl") if report else None
        samples = len(self.source)
        if isinstance(self.source, StreamedShards):  # of which this device sees its share
            samples = self.source.config.samples // (self.trainer.world_size if self.trainer else 1)
        return LateRejects(path, self.loading.max_rejected, samples, self.fingerprint)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position of the next training batch. A batch that was read but whose step did not end (Ctrl-C) is
        read again."""
        return self._train_loader.state_dict() | {"data": self.fingerprint} if self._train_loader else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The next training loader goes on there; making it is refused in the middle of an epoch of other data."""
        self._resume = state_dict or None

    def _check_same_data(self, state: dict[str, Any]) -> None:
        if state["position"]:
            saved = state.get("data", self.fingerprint)  # the first checkpoints did not have it
            check_same({"data": saved}, {"data": self.fingerprint})

    def _progress(self) -> Progress:
        worked_off = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
        return Progress(worked_off, int(self.trainer.num_training_batches))


class TokenizerData(CaptionedData):
    """Pictures for an image tokenizer.

    A batch is {"images": (B, 3, image_size, image_size) float in [0, 1], "keys": list[str]}.

    Args:
        folder: one's own pictures (data/folder.py). Exactly one of folder, drawings and shards is given.
        drawings: the built-in ones (data/shapes.py), drawn at image_size or larger.
        shards: tar shards (data/shards): a path, or sets of them with weights.
        image_size: side in pixels.
        augment: the paper's augmentation in training; else the evaluation crop there too.
        filters: which samples of a folder or of shards are left out.
        loading: how samples are chosen and read.
    """

    def __init__(
        self,
        folder: str | None = None,
        drawings: ShapesConfig | None = None,
        shards: str | ShardsConfig | None = None,
        image_size: int = 256,
        augment: bool = True,
        filters: Filters = Filters(),  # noqa: B008 (frozen)
        loading: Loading = Loading(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(loading)
        check_one_given(folder=folder, drawings=drawings, shards=shards)
        check_drawn_large_enough(drawings, image_size)
        self.folder, self.drawings, self.shards = folder, drawings, shards
        self.image_size, self.augment, self.filters = image_size, augment, filters

    def open_source(self) -> Source:
        return open_pictures(
            self.folder,
            self.drawings,
            self.loading,
            need_captions=False,
            shards=self.shards,
            training=True,
            filters=self.filters,
        )

    def readers(self, source: Source, *, training: bool) -> list[Reader]:
        augmentation = transforms.tokenizer_augmentation if training and self.augment else None
        return [PictureReader(source, self.image_size, augmentation)]


class PriorData(CaptionedData):
    """Captions and image tokens for a prior.

    A batch is {"text_tokens": (B, text_len - 1) int64, "image_tokens": (B, h, w) int64, "captions": list[str],
    "keys": list[str]}. From pictures, the loader's batches hold "images" (B, 3, image_size, image_size) in the place of
    "image_tokens"; on the device, `encode_images` turns the ones into the others. `text_tokenizer` is there after
    `setup`, which raises ValueError for an unreadable tokenizer.json.

    Args:
        folder: one's own captioned pictures (data/folder.py). Exactly one of folder, drawings, codes and shards is
            given.
        drawings: the built-in ones (data/shapes.py), drawn at image_size or larger.
        codes: a folder of pictures that are encoded already (data/codes.py).
        shards: tar shards (data/shards) with captions: a path, or sets of them with weights.
        image_size: side in pixels; without meaning for codes.
        augment: the paper's augmentation in training, of codes any of their crops; else the evaluation crop there too.
        text: how captions become tokens.
        filters: which samples of a folder or of shards are left out.
        loading: how samples are chosen and read.
    """

    text_tokenizer: TextTokenizer

    def __init__(
        self,
        folder: str | None = None,
        drawings: ShapesConfig | None = None,
        codes: str | None = None,
        shards: str | ShardsConfig | None = None,
        image_size: int = 256,
        augment: bool = True,
        text: TextConfig = TextConfig(),  # noqa: B008 (frozen)
        filters: Filters = Filters(),  # noqa: B008 (frozen)
        loading: Loading = Loading(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(loading)
        check_one_given(folder=folder, drawings=drawings, codes=codes, shards=shards)
        check_drawn_large_enough(drawings, image_size)
        self.folder, self.drawings, self.codes, self.shards = folder, drawings, codes, shards
        self.image_size, self.augment, self.text, self.filters = image_size, augment, text, filters
        self.encode_images: Callable[[Tensor], Tensor] | None = None  # (B, 3, H, W) -> (B, h, w)

    def _open(self) -> None:
        super()._open()
        self.text_tokenizer = self._text_tokenizer()
        self._report_truncated(list(self._captions_of(in_places(self.train_indices, PICTURES_COUNTED, PLACES_COUNTED))))

    def _text_tokenizer(self) -> TextTokenizer:
        if self.text.tokenizer is not None:
            return TextTokenizer.load(self.text.tokenizer)
        if isinstance(self.source, StreamedShards):
            raise ValueError(
                "captions of streamed shards cannot be read beforehand: name a tokenizer.json as text.tokenizer"
            )
        if self.codes is None:
            return self._train_text_tokenizer()
        made_of = self.fingerprint, self.loading.val_fraction, self.text.vocab_size, PICTURES_READ_FOR_TEXT
        return trained_once(Path(self.codes), made_of, self._train_text_tokenizer)

    def _train_text_tokenizer(self) -> TextTokenizer:
        read = spread(self.train_indices, PICTURES_READ_FOR_TEXT)
        return TextTokenizer.train(self._captions_of(read), self.text.vocab_size)

    def _captions_of(self, indices: Tensor) -> Iterator[str]:
        for index in indices.tolist():
            with suppress(Rejected):  # counted where the sample is read to train on
                yield from self.source.captions(index)

    def _report_truncated(self, captions: list[str]) -> None:
        truncated = self.text_tokenizer.count_longer(captions, self.text.text_len)
        if truncated:
            log.warning(
                "%s of %s captions are longer than text_len=%s allows (%s tokens and BOS): their ends are cut off",
                f"{truncated:,}",
                f"{len(captions):,}",
                self.text.text_len,
                self.text.text_len - 1,
            )

    def state_dict(self) -> dict[str, Any]:
        """Where the data goes on, and the text tokenizer that made the tokens, whole: before a run's end, a checkpoint
        is the only place that has one trained on its captions."""
        tokenizer = {
            "text_tokenizer": self.text_tokenizer.fingerprint,
            "text_tokenizer_json": self.text_tokenizer.to_json(),
        }
        return super().state_dict() | tokenizer

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As for all data. Where the captions have changed since, the checkpoint's text tokenizer takes the place of
        the one trained on them, so that tokens keep their meaning; ValueError where another was given."""
        state = dict(state_dict)
        saved, content = state.pop("text_tokenizer"), state.pop("text_tokenizer_json", None)
        now = self.text_tokenizer.fingerprint
        if saved != now:
            if content is None or self.text.tokenizer is not None:  # the first checkpoints did not have the content
                raise ValueError(
                    f"the checkpoint was trained with the text tokenizer {saved}, this run has {now}: give the "
                    "former's tokenizer.json as text.tokenizer"
                )
            log.warning("other captions give another text tokenizer, %s: the checkpoint's goes on, %s", now, saved)
            self.text_tokenizer = TextTokenizer.from_json(content)
        super().load_state_dict(state)

    def open_source(self) -> Keyed:
        return open_captioned(
            self.folder, self.drawings, self.codes, self.loading, shards=self.shards, filters=self.filters
        )

    def readers(self, source: Keyed, *, training: bool) -> list[Reader]:
        text = CaptionReader(
            source,
            self.text_tokenizer,
            self.text.text_len,
            any_caption=training and self.text.captions == "any",
            dropout=self.text.bpe_dropout if training else 0.0,
        )
        if self.codes is not None:
            return [text, CodesReader(source, any_crop=training and self.augment)]
        augmentation = transforms.prior_augmentation if training and self.augment else None
        return [text, PictureReader(source, self.image_size, augmentation)]

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Replace "images" by "image_tokens". Raises RuntimeError where `encode_images` has not been set."""
        if "images" not in batch:
            return batch
        if self.encode_images is None:
            raise RuntimeError("PriorData.encode_images is not set: pictures need an image tokenizer to become tokens")
        with torch.no_grad():
            image_tokens = self.encode_images(batch["images"])  # (B, h, w)
        return {name: part for name, part in batch.items() if name != "images"} | {"image_tokens": image_tokens}

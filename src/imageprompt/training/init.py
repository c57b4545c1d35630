"""The adapter at the start of a run: new, or loaded from a file; and its warm start on captions.

In the warm start the projector learns to reproduce the text states of the captions. K' and V' start
as copies of the text's K and V. Tokens equal to the text encoder's states of a caption then act
like these words, so a projector that comes close to such states has learned what words can say
before the denoiser, which costs a hundred times more, runs at all. In joint attention the text's
states change from block to block, so its layers make something else of the tokens: there, least
squares fits K' and V' to the keys and values that the captions have in each block. Neither step is
part of the IP-Adapter paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imageprompt.adapter.adapter import Adapter
from imageprompt.adapter.attachment import AttachedDenoiser
from imageprompt.core.errors import OptionError
from imageprompt.core.hub import PARTS, part_of
from imageprompt.loading import load_adapter_file
from imageprompt.training.config.config import ConditionDropout, PartConfig, TrainingConfig
from imageprompt.training.data.dataset import RandomStreams
from imageprompt.training.data.feature_extractors import feature_to_read
from imageprompt.training.loop.logging import log
from imageprompt.training.loop.objective import NullConditions, Objective
from imageprompt.variants import VARIANTS

if TYPE_CHECKING:
    from imageprompt.adapter.pair import AdapterPair
    from imageprompt.hosts.contract import JointTextLayers

_KEYS = {"tokens": "tokens", "depth": "depth", "heads": "heads", "width": "inner_dim"}
"""Config key -> field of the projector's spec."""
Pairs = Callable[[int], tuple[Tensor, Tensor]]
"""Step -> image features [b, ...], and the states [b, N, W] of their captions."""

BATCH = 64
WARMUP = 100  # steps
DECAY = 0.6  # share of the steps over which the learning rate falls to zero
SAME_STATES = 0.01
"""States that differ by less than this share of the largest one are those of the same caption."""


def init_adapter(config: TrainingConfig, base: Any) -> Adapter:
    """A new adapter for a base, or the one in the file `config.adapter`, in float32.

    Raises OptionError if the file and the config disagree.
    """
    options = {key: getattr(config, key) for key in _KEYS if getattr(config, key) is not None}
    if config.adapter is None:
        return _create(config, base, options)
    loaded = load_adapter_file(config.adapter, variant=config.variant)
    in_file = {key: getattr(loaded.spec.projector, field) for key, field in _KEYS.items()}
    changed = {key: value for key, value in options.items() if value != in_file[key]}
    if not changed:
        return loaded
    if set(changed) != {"tokens"}:
        raise OptionError(
            f"adapter {config.adapter!r}",
            reason=f"its projector has {_listed(in_file)}, but the config has {_listed(changed)}",
            hint="Only the number of tokens can be changed: leave the others out.",
        )
    return _with_other_tokens(config, base, loaded, in_file | changed)


def init_trained(config: TrainingConfig, base: Any) -> Adapter | AdapterPair:
    """What a run trains: an adapter, or a pair of them. Raises what making them does."""
    return init_adapter(config, base) if config.pairs == "none" else init_pair(config, base)


def init_pair(config: TrainingConfig, base: Any) -> AdapterPair:
    """A new pair of adapters for a base, or the one in the file `config.adapter`, in float32.

    Raises OptionError for a variant that reads faces, and if file and config disagree.
    """
    from imageprompt.adapter.pair import AdapterPair

    if VARIANTS[config.variant].feature.reads_faces:
        raise OptionError(
            f"pairs: {config.pairs} with {config.variant}",
            reason="content and style are read from pictures, this variant reads faces",
            hint="Set variant: plus, or pairs: none.",
        )
    made = []
    for name in PARTS:
        part: PartConfig = getattr(config, name)
        file = None if config.adapter is None else part_of(config.adapter, name)
        own = {key: value for key in _KEYS if (value := getattr(part, key)) is not None}
        made.append(init_adapter(replace(config, adapter=file, **own), base))
    content, style = made
    if content.spec.feature != style.spec.feature:
        raise OptionError(
            f"adapter {config.adapter!r}",
            reason=f"its content reads {content.spec.feature}, its style {style.spec.feature}",
            hint="Both must read the same output of the image encoder.",
        )
    return AdapterPair(content, style)


def _create(config: TrainingConfig, base: Any, options: dict[str, Any]) -> Adapter:
    reads_pictures = not VARIANTS[config.variant].feature.faces_only
    return Adapter.create(
        config.variant,
        denoiser=base.denoiser,
        encoder=base.encoder if reads_pictures else None,
        init=config.init,
        num_tokens=options.get("tokens"),
        depth=options.get("depth"),
        heads=options.get("heads"),
        inner_dim=options.get("width"),
        feature=str(feature_to_read(config)),
    )


def _with_other_tokens(
    config: TrainingConfig, base: Any, loaded: Adapter, options: dict[str, Any]
) -> Adapter:
    """A new adapter with the file's weights wherever they fit; logs which do not."""
    known = VARIANTS[config.variant].options
    options = {key: value for key, value in options.items() if _KEYS[key] in known}
    adapter = _create(config, base, options)
    in_file, initial = loaded.module.state_dict(), adapter.module.state_dict()
    new = [name for name, value in initial.items() if in_file[name].shape != value.shape]
    adapter.module.load_state_dict(
        initial | {name: value for name, value in in_file.items() if name not in new}
    )
    log(
        f"{options['tokens']} tokens: {', '.join(new)} initialised anew,"
        " all other weights loaded from the file"
    )
    return adapter


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())


# ── warm start ────────────────────────────────────────────────────────────────────────────────────


def caption_warm_start(
    config: TrainingConfig,
    adapter: Adapter,
    samples: Any,
    as_tokens: Callable[[Tensor], Tensor],
    *,
    part: int | None = None,
    log: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> bool:
    """Fit the projector to the captions' text states; False if all captions are the same.

    `as_tokens` turns text states into what the base's attention reads, as wide as image tokens.
    `part` says which of a pair's features the adapter reads.
    Raises OptionError for a projector without a fixed number of tokens, or one that reads faces,
    and for a base whose attention reads text of another width.
    """
    tokens = adapter.spec.tokens
    if tokens is None or not hasattr(samples, "caption_batch"):
        raise OptionError(
            f"warm_start: captions with {config.variant}",
            reason="needs a projector that reads pictures and has a fixed number of tokens",
            hint="Set warm_start: none.",
        )
    device = next(adapter.parameters()).device
    width = adapter.spec.projector.cross_attention_dim

    def pairs(step: int) -> tuple[Tensor, Tensor]:
        indices = samples.indices(step, BATCH, config.seed)
        one = () if part is None else (part,)
        features, states, lengths = samples.caption_batch(indices, *one)
        chosen = [
            choose_states(states[row : row + 1], int(length), tokens)
            for row, length in enumerate(lengths)
        ]
        with torch.no_grad():
            targets = as_tokens(torch.cat(chosen)).float().to(device)
        if targets.shape[-1] != width:
            raise OptionError(
                "warm_start: captions",
                reason=f"this base's attention reads text {targets.shape[-1]} wide, image tokens "
                f"are {width} wide",
                hint="Set warm_start: none.",
            )
        return features.float().to(device), targets

    steps = config.warm_start_steps
    epoch = -(-len(samples) // BATCH)
    if not captions_differ(pairs, min(steps, epoch)):
        log("warm start skipped: all pictures have the same caption, which carries no information")
        return False
    adapter.module.requires_grad_(True)
    error = fit_projector_to_captions(
        adapter.module.image_proj,
        pairs,
        steps,
        on_progress=lambda step: on_progress("warm start", step, steps),
    )
    if error < 1:
        log(f"warm start: caption error {error:.1%}")
    else:
        log(
            f"warm start has not converged (caption error {100 * error:.0f} %);"
            " use more warm_start_steps"
        )
    return True


FITTED_CAPTIONS = 768
RIDGE = 0.01
"""Of the tokens' mean square."""
VALUES = 0.3
"""Share of the text's values that V' starts at: in joint attention their softmax also covers the
picture's rows."""


@dataclass(frozen=True)
class CaptionedCall:
    """A call of a denoiser whose text is captions, and the tokens that stand for these.

    `choose` takes the tokens' rows out of those of the text, [b, l, d] -> [b, N, d].
    """

    tokens: Tensor
    choose: Callable[[Tensor], Tensor]
    run: Callable[[], object]


def fit_layers_to_captions(
    config: TrainingConfig,
    adapter: Adapter,
    base: Any,
    samples: Any,
    objective: Objective,
    *,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Where attention is joint, fit K' and V' to the captions' keys and values in each block.

    The attached adapter is at scale 0 meanwhile; noise and timesteps are drawn as in training.
    """
    tokens = adapter.spec.tokens
    assert tokens is not None  # the projector has learned captions
    alone = replace(objective, dropout=ConditionDropout(0.0, 0.0, 0.0), scales=(0.0, 0.0))
    nulls, size = NullConditions.of(samples), config.batch_size
    steps = -(-FITTED_CAPTIONS // size)

    def call_at(step: int) -> CaptionedCall:
        indices = samples.indices(step, size, config.seed)
        streams = RandomStreams.at(config.seed, step * size, len(indices), step)
        batch, lengths = samples.batch(indices, streams), samples.caption_batch(indices)[2]

        def choose(states: Tensor) -> Tensor:
            own = states[:, -batch.text.shape[1] :]  # AuraFlow has rows of its own before the text
            return torch.cat(
                [choose_states(own[row : row + 1], n, tokens) for row, n in enumerate(lengths)]
            )

        def run() -> None:
            with alone.loss(adapter, base.denoiser, base.scheduler, batch, nulls, streams):
                on_progress("K' and V'", step + 1, steps)

        return CaptionedCall(choose(base.as_tokens(batch.text)), choose, run)

    fit_joint_layers(adapter, base.denoiser, map(call_at, range(steps)))


@torch.no_grad()
def fit_joint_layers(adapter: Adapter, denoiser: Any, calls: Iterable[CaptionedCall]) -> None:
    """Least squares from the tokens of captions to the captions' keys and values at every site.

    Sites where the text has no layers of its own stay as they are.
    """
    on, layers = AttachedDenoiser.of(denoiser), adapter.module.ip_adapter
    fits = [
        _Fit(layers[site.file_id], text, site.heads)
        for site in on.spec.sites
        if site.file_id in layers
        and (text := on.host.joint_text_layers(on.denoiser, site.name)) is not None
    ]
    square: Tensor | None = None
    for call in calls if fits else ():
        tokens = call.tokens.float().flatten(0, 1)
        with ExitStack() as hooks:
            for fit in fits:
                hooks.enter_context(fit.listening(tokens, call.choose))
            call.run()
        square = tokens.T @ tokens + (0 if square is None else square)
    if square is not None:
        square += RIDGE * square.diagonal().mean() * torch.eye(len(square), device=square.device)
        for fit in fits:
            fit.solve(square)


class _Fit:
    """K' and V' of one site, and the sums that their least squares need."""

    def __init__(self, site: Any, layers: JointTextLayers, heads: int) -> None:
        self._to, self._layers, self._heads = (site.to_k_ip, site.to_v_ip), layers, heads
        self._products: list[Tensor | float] = [0.0, 0.0]

    @contextmanager
    def listening(self, tokens: Tensor, choose: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Add the keys and values of the call inside; `tokens` [b N, W] stand for its text."""

        def hear(kind: int) -> Callable[[nn.Module, Any, Tensor], None]:
            def keep(_: nn.Module, args: Any, output: Tensor) -> None:
                if kind == 0 and self._layers.norm is not None:
                    output = self._layers.norm(
                        torch.unflatten(output, 2, (self._heads, -1))
                    ).flatten(2)
                goal = choose(output.float()).flatten(0, 1)
                self._products[kind] = self._products[kind] + tokens.to(goal).T @ goal

            return keep

        layers = (self._layers.key, self._layers.value)
        handles = [layer.register_forward_hook(hear(kind)) for kind, layer in enumerate(layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def solve(self, square: Tensor) -> None:
        for layer, product, share in zip(self._to, self._products, (1.0, VALUES), strict=True):
            assert isinstance(product, Tensor)
            layer.weight.copy_(share * torch.linalg.solve(square.to(product), product).T)


def captions_differ(pairs: Pairs, batches: int) -> bool:
    """Whether the first `batches` batches have more than one caption, judged by the states."""
    first = pairs(0)[1][:1]
    tolerance = SAME_STATES * float(first.abs().max())
    return any(float((pairs(batch)[1] - first).abs().max()) > tolerance for batch in range(batches))


def choose_states(states: Tensor, length: int, tokens: int) -> Tensor:
    """The `tokens` states [b, N, W] that represent captions of `length` tokens [b, L, W].

    `length` includes the start and end tokens. If N >= length these are the first N states, padding
    included; otherwise N words at even distances, up to the last one.
    """
    if tokens >= length:
        return states[:, :tokens]
    last = length - 2  # the end token follows the last word
    return states[:, [round((i + 1) * last / tokens) for i in range(tokens)]]


def fit_projector_to_captions(
    projector: nn.Module,
    pairs: Pairs,
    steps: int,
    *,
    rate: float = 2e-3,
    on_progress: Callable[[int], None] = lambda step: None,
) -> float:
    """Train the projector to output the states; returns the caption error.

    The error is the share of the states' variance that is left unexplained, over the last tenth of
    the steps; each batch is measured before it is learned from. It is infinite if every batch of
    them has one caption only.
    """
    weights = list(projector.parameters())
    optimiser = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    error = variance = 0.0
    for step in range(steps):
        features, states = pairs(step)
        loss = F.mse_loss(projector(features), states)
        if step >= min(0.9 * steps, steps - 1):
            error += float(loss.detach())
            variance += float(states.var(dim=0, correction=0).mean())
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        on_progress(step + 1)
    return error / variance if variance else float("inf")

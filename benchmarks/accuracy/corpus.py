"""The corpus: small trainings whose outcome is measured, by family, healthy and tricky-healthy ones among them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.nn import functional as F

from benchmarks.accuracy import pieces
from benchmarks.accuracy.case import (
    LONG,
    SHORT,
    Case,
    ce,
    cosine,
    jump,
    mse,
    negative,
    one_cycle,
    summed,
    warm_up,
)


def cases() -> Iterator[Case]:
    """Every case of the corpus."""
    for family in (
        _plain,
        _residual,
        _conv,
        _recurrent,
        _series,
        _transformer,
        _autoencoder,
        _adapters,
        _planted,
        _tricky,
        _long,
    ):
        yield from family()


def _plain() -> Iterator[Case]:
    for depth, act, gain, lr, optimizer in (
        (4, nn.ReLU, 1.0, 0.05, "momentum"),
        (8, nn.Tanh, 0.7, 0.1, "sgd"),
        (8, nn.ReLU, 1.6, 0.05, "sgd"),
        (16, nn.ReLU, 1.0, 0.02, "momentum"),
        (16, nn.ReLU, 1.5, 0.01, "sgd"),
        (4, nn.GELU, 1.0, 2.0, "sgd"),
        (6, nn.ReLU, 1.0, 3e-3, "adam"),
        (6, nn.Identity, 1.3, 0.1, "sgd"),
    ):
        name = f"plain/{depth}-{act.__name__}-{gain}-{optimizer}{lr}"
        yield Case(name, "plain", partial(pieces.mlp, depth, act, gain), pieces.images(), ce, lr, optimizer)
    late = partial(pieces.mlp, 4, nn.GELU)
    yield Case("plain/4-GELU-warm", "plain", late, pieces.images(), ce, 3.0, "sgd", warm_up(290))
    yield Case("plain/4-GELU-jump", "plain", late, pieces.images(), ce, 0.1, "momentum", jump(150, 20.0))


def _residual() -> Iterator[Case]:
    for depth, norm, gain, lr, schedule in (
        (6, True, 1.0, 0.1, None),
        (12, True, 1.0, 0.5, ("warm", 150)),
        (6, False, 1.0, 0.05, None),
        (6, False, 1.0, 0.4, ("warm", 200)),
        (12, False, 1.0, 0.1, ("warm", 150)),
        (12, False, 0.3, 0.05, ("cycle", 120)),
        (12, False, 0.5, 1.0, ("cycle", 200)),
    ):
        name = f"residual/{depth}-{'norm' if norm else 'bare'}-{gain}-{lr}-{schedule and schedule[0]}"
        made = (
            None
            if schedule is None
            else warm_up(schedule[1])
            if schedule[0] == "warm"
            else one_cycle(schedule[1], SHORT)
        )
        build = partial(pieces.residual_mlp, depth, norm, gain)
        yield Case(name, "residual", build, pieces.images(), ce, lr, "momentum", made)


def _conv() -> Iterator[Case]:
    for depth, norm, gain, lr, optimizer, schedule in (
        (4, nn.BatchNorm2d, 1.0, 0.1, "momentum", None),
        (6, nn.GroupNorm, 1.0, 0.05, "momentum", cosine(SHORT)),
        (4, None, 1.0, 0.02, "momentum", None),
        (4, None, 1.0, 1.0, "sgd", warm_up(200)),
        (6, None, 1.5, 0.02, "sgd", None),
        (6, None, 2.5, 0.01, "sgd", None),
        (4, nn.BatchNorm2d, 3.0, 1.0, "sgd", None),
        (4, None, 1.0, 0.5, "momentum", warm_up(280)),
    ):
        name = f"conv/{depth}-{norm.__name__ if norm else 'bare'}-{gain}-{optimizer}{lr}"
        build = partial(pieces.conv, depth, norm, gain)
        yield Case(name, "conv", build, pieces.images(square=True), ce, lr, optimizer, schedule)


def _recurrent() -> Iterator[Case]:
    for cell, gain, lr, optimizer, settings, schedule in (
        (nn.LSTM, 1.0, 0.5, "sgd", {}, None),
        (nn.GRU, 1.0, 3e-3, "adam", {}, None),
        (nn.RNN, 1.0, 0.1, "sgd", {}, None),
        (nn.RNN, 1.0, 0.3, "momentum", {"nonlinearity": "relu"}, warm_up(200)),
        (nn.RNN, 1.1, 0.1, "sgd", {"nonlinearity": "relu"}, None),
        (nn.RNN, 1.5, 0.1, "sgd", {"nonlinearity": "relu"}, None),
        (nn.RNN, 0.9, 3e-3, "adam", {"nonlinearity": "relu"}, None),
        (nn.RNN, 0.9, 2.0, "momentum", {"nonlinearity": "relu"}, warm_up(290)),
        (nn.RNN, 2.0, 1e-3, "adam", {}, None),
    ):
        act = settings.get("nonlinearity", "tanh")
        name = f"recurrent/{cell.__name__}-{act}-{gain}-{optimizer}{lr}"
        build = partial(pieces.CharacterRecurrent, cell, gain, **settings)
        yield Case(name, "recurrent", build, pieces.characters(), ce, lr, optimizer, schedule)


def _series() -> Iterator[Case]:
    late = partial(pieces.Forecaster, nn.RNN, nonlinearity="relu")
    yield Case("series/RNN-warm", "series", late, pieces.next_return(), mse, 0.5, "momentum", warm_up(280))
    for cell, lr, optimizer, scale, settings in (
        (nn.LSTM, 0.1, "momentum", 1.0, {}),
        (nn.GRU, 1e-2, "adam", 1.0, {}),
        (nn.RNN, 0.05, "sgd", 1.0, {"nonlinearity": "relu"}),
        (nn.RNN, 0.5, "momentum", 1.0, {"nonlinearity": "relu"}),
        (nn.LSTM, 0.1, "momentum", 30.0, {}),
        (nn.RNN, 0.02, "sgd", 10.0, {"nonlinearity": "relu"}),
    ):
        name = f"series/{cell.__name__}-{scale:g}-{optimizer}{lr}"
        build = partial(pieces.Forecaster, cell, **settings)
        yield Case(name, "series", build, pieces.next_return(scale=scale), mse, lr, optimizer)


def _transformer() -> Iterator[Case]:
    for depth, first, last, lr, optimizer, schedule in (
        (4, True, True, 3e-3, "adamw", warm_up(30)),
        (6, False, True, 1e-3, "adamw", warm_up(100)),
        (4, True, False, 0.3, "momentum", warm_up(200)),
        (8, True, False, 1.0, "momentum", warm_up(200)),
        (4, True, False, 3.0, "sgd", one_cycle(150, SHORT)),
        (4, True, True, 0.1, "momentum", None),
    ):
        name = f"transformer/{depth}-{'pre' if first else 'post'}-{'norm' if last else 'bare'}-{optimizer}{lr}"
        build = partial(pieces.Transformer, depth, norm_first=first, last_norm=last)
        yield Case(name, "transformer", build, pieces.characters(), ce, lr, optimizer, schedule)


def _autoencoder() -> Iterator[Case]:
    for act, gain, lr, optimizer, schedule in (
        (nn.ReLU, 1.0, 1e-3, "adam", None),
        (nn.Tanh, 1.0, 0.5, "momentum", None),
        (nn.ELU, 1.5, 0.2, "momentum", warm_up(150)),
        (nn.ReLU, 3.0, 0.05, "sgd", None),
        (nn.GELU, 2.0, 1.0, "momentum", warm_up(250)),
        (nn.Identity, 2.0, 0.3, "sgd", None),
        (nn.ELU, 1.0, 20.0, "sgd", warm_up(280)),
    ):
        name = f"autoencoder/{act.__name__}-{gain}-{optimizer}{lr}"
        yield Case(
            name, "autoencoder", partial(pieces.autoencoder, act, gain), pieces.itself(), mse, lr, optimizer, schedule
        )


def _adapters() -> Iterator[Case]:
    for depth, scale, lr, optimizer, schedule in (
        (3, 1.0, 5e-3, "adamw", None),
        (3, 4.0, 0.1, "sgd", None),
        (6, 16.0, 0.2, "sgd", warm_up(200)),
        (3, 16.0, 1e-2, "adamw", None),
        (6, 32.0, 0.1, "momentum", None),
    ):
        name = f"adapters/{depth}-{scale:g}-{optimizer}{lr}"
        yield Case(
            name, "adapters", partial(pieces.adapted, depth, scale), pieces.images(), ce, lr, optimizer, schedule
        )


def _planted() -> Iterator[Case]:
    relu, tanh = partial(pieces.mlp, 6, nn.ReLU), partial(pieces.mlp, 8, nn.Tanh, 0.7)
    for name, model, data, culprit, factor, group_lr, lr in (
        ("relu-2x10", relu, pieces.images(), "fc2", 10.0, 1.0, 0.01),
        ("relu-4x30", relu, pieces.images(), "fc4", 30.0, 1.0, 1e-3),
        ("relu-1x5", relu, pieces.images(), "fc1", 5.0, 1.0, 0.02),
        ("tanh-3x20", tanh, pieces.images(), "fc3", 20.0, 1.0, 0.05),
        ("tanh-5lr100", tanh, pieces.images(), "fc5", 1.0, 100.0, 0.02),
        ("relu-3lr50", relu, pieces.images(), "fc3", 1.0, 50.0, 0.02),
        ("conv-2x10", partial(pieces.conv, 5, None), pieces.images(square=True), "conv2", 10.0, 1.0, 0.01),
        (
            "conv-3x10-norm",
            partial(pieces.conv, 5, nn.BatchNorm2d),
            pieces.images(square=True),
            "conv3",
            10.0,
            1.0,
            0.05,
        ),
        ("norm-2x10", partial(pieces.mlp, 6, nn.ReLU, norm=True), pieces.images(), "fc2", 10.0, 1.0, 0.05),
    ):
        yield Case(f"planted/{name}", "planted", model, data, ce, lr, culprit=culprit, factor=factor, group_lr=group_lr)


def _tricky() -> Iterator[Case]:
    """Healthy, but made to look otherwise."""
    net = partial(pieces.mlp, 4, nn.ReLU)
    yield Case("tricky/sum", "tricky", net, pieces.images(64), summed, 1e-3)
    yield Case("tricky/huge-scale", "tricky", net, pieces.images(), lambda o, t: 1e6 * F.cross_entropy(o, t), 5e-8)
    yield Case(
        "tricky/tiny-scale", "tricky", net, pieces.images(), lambda o, t: 1e-6 * F.cross_entropy(o, t), 1e-3, "adam"
    )
    yield Case(
        "tricky/negative", "tricky", partial(pieces.autoencoder, nn.ReLU), pieces.itself(), negative, 1e-3, "adam"
    )
    yield Case("tricky/batch-2", "tricky", net, pieces.images(2), ce, 0.01)
    yield Case("tricky/rate-jumps", "tricky", net, pieces.images(), ce, 0.01, schedule=jump(100, 5.0))
    yield Case("tricky/never-learns", "tricky", net, pieces.images(), ce, 1e-7)
    yield Case("tricky/large-inputs", "tricky", net, _scaled(100.0), ce, 1e-3, "adam")


def _scaled(factor: float) -> pieces.Batches:
    x, y = pieces.digits()
    return pieces.drawn(x * factor, y, 32, 0)


def _long() -> Iterator[Case]:
    """Horizons far beyond what is rehearsed in full."""
    for name, model, data, lr, optimizer, warm in (
        (
            "transformer-late",
            partial(pieces.Transformer, 4, norm_first=True, last_norm=False),
            pieces.characters(),
            1.0,
            "momentum",
            900,
        ),
        ("transformer-fine", partial(pieces.Transformer, 3, norm_first=True), pieces.characters(), 1e-3, "adamw", 200),
        ("residual-late", partial(pieces.residual_mlp, 8, False), pieces.images(), 0.4, "momentum", 1200),
        ("residual-fine", partial(pieces.residual_mlp, 8, True), pieces.images(), 0.1, "momentum", 300),
        ("conv-late", partial(pieces.conv, 4, None), pieces.images(square=True), 1.5, "sgd", 1400),
        (
            "relu-rnn",
            partial(pieces.CharacterRecurrent, nn.RNN, 1.0, nonlinearity="relu"),
            pieces.characters(),
            0.2,
            "sgd",
            1000,
        ),
        ("lstm-fine", partial(pieces.CharacterRecurrent, nn.LSTM), pieces.characters(), 1.0, "sgd", 300),
    ):
        yield Case(f"long/{name}", "long", model, data, ce, lr, optimizer, warm_up(warm), LONG)

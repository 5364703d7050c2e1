"""Long trainings drawn at random, to see what compressed rehearsals foresee: ten families near the edge of stability.

Nothing is chosen by hand but the ranges: learning rates up to a few times what such a net bears.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from functools import partial

from torch import nn

from benchmarks.accuracy import pieces
from benchmarks.accuracy.case import Case, Loss, Schedule, ce, cosine, jump, mse, one_cycle, warm_up

STEPS, COUNT, SEED = 2000, 50, 7
RELATIVE = {"sgd": 1.0, "momentum": 0.15}
"""What the largest stable rate is, against plain SGD."""
ADAPTIVE = (5e-4, 3e-2)

Draw = tuple[str, Callable[[], nn.Module], pieces.Batches, Loss, tuple[float, float]]
"""What tells it apart, model, data, loss, and the range of SGD's learning rates."""


def cases() -> Iterator[Case]:
    """The drawn trainings; the same every time."""
    dice = random.Random(SEED)
    for number in range(COUNT):
        yield _case(dice, number, FAMILIES[number % len(FAMILIES)])


def _case(dice: random.Random, number: int, family: Callable[[random.Random], Draw]) -> Case:
    kind, schedule = _schedule(dice)
    optimizer = dice.choice(["sgd", "momentum", "momentum", "adam", "adamw"])
    tag, model, data, loss, (low, high) = family(dice)
    low, high = (low, high) if optimizer in RELATIVE else ADAPTIVE
    rate = 10 ** dice.uniform(math.log10(low), math.log10(high)) * RELATIVE.get(optimizer, 1.0)
    name = f"drawn/{number}-{tag}-{optimizer}{rate:.2g}-{kind}"
    return Case(name, family.__name__.strip("_"), model, data, loss, rate, optimizer, schedule, STEPS)


def _schedule(dice: random.Random) -> tuple[str, Schedule | None]:
    peak = dice.choice([100, 400, 900, 1500, 1950])
    rise, fall = warm_up(peak), cosine(STEPS)
    kinds: dict[str, Schedule | None] = {
        "constant": None,
        f"warm{peak}": rise,
        f"warm{peak}-cosine": lambda step: rise(step) * fall(step),
        f"cycle{peak}": one_cycle(peak, STEPS),
        "cosine": fall,
        "growing": lambda step: 30 ** (step / STEPS) / 30,
        "jump500": jump(500, 3.0),
    }
    return dice.choice(list(kinds.items()))


def _transformer(dice: random.Random) -> Draw:
    depth, first, last = dice.choice([2, 4, 6]), dice.random() < 0.6, dice.random() < 0.6
    model = partial(pieces.Transformer, depth, norm_first=first, last_norm=last)
    tag = f"transformer-{depth}-{'pre' if first else 'post'}-{'norm' if last else 'bare'}"
    return tag, model, pieces.characters(seed=dice.randrange(1000)), ce, (0.1, 4.0)


def _lstm(dice: random.Random) -> Draw:
    model = partial(pieces.CharacterRecurrent, nn.LSTM)
    return "lstm", model, pieces.characters(seed=dice.randrange(1000)), ce, (0.5, 20.0)


def _rnn(dice: random.Random) -> Draw:
    act, gain, length = dice.choice(["relu", "tanh"]), dice.choice([0.8, 0.95, 1.0, 1.05]), dice.choice([24, 48])
    model = partial(pieces.CharacterRecurrent, nn.RNN, gain, nonlinearity=act)
    return f"rnn-{act}-{gain}", model, pieces.characters(length=length, seed=dice.randrange(1000)), ce, (0.03, 2.0)


def _conv(dice: random.Random) -> Draw:
    depth, norm = dice.choice([4, 6, 8]), dice.choice([None, None, nn.BatchNorm2d, nn.GroupNorm])
    gain = dice.choice([0.7, 1.0, 1.3])
    tag = f"conv-{depth}-{norm.__name__ if norm else 'bare'}-{gain}"
    data = pieces.images(seed=dice.randrange(1000), square=True)
    return tag, partial(pieces.conv, depth, norm, gain), data, ce, (0.1, 4.0)


def _residual(dice: random.Random) -> Draw:
    depth, norm, gain = dice.choice([6, 12]), dice.random() < 0.4, dice.choice([0.5, 1.0])
    tag = f"residual-{depth}-{'norm' if norm else 'bare'}-{gain}"
    model = partial(pieces.residual_mlp, depth, norm, gain)
    return tag, model, pieces.images(seed=dice.randrange(1000)), ce, (0.05, 3.0)


def _autoencoder(dice: random.Random) -> Draw:
    act, gain = dice.choice([nn.ReLU, nn.ELU, nn.GELU, nn.Tanh]), dice.choice([1.0, 1.5, 2.0])
    model = partial(pieces.autoencoder, act, gain)
    return f"autoencoder-{act.__name__}-{gain}", model, pieces.itself(seed=dice.randrange(1000)), mse, (1.0, 60.0)


def _plain(dice: random.Random) -> Draw:
    depth, gain = dice.choice([4, 8]), dice.choice([0.8, 1.0, 1.3])
    act = dice.choice([nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU])
    model = partial(pieces.mlp, depth, act, gain)
    return f"plain-{depth}-{act.__name__}-{gain}", model, pieces.images(seed=dice.randrange(1000)), ce, (0.1, 4.0)


FAMILIES = (_transformer, _lstm, _rnn, _conv, _residual, _autoencoder, _plain, _transformer, _residual, _rnn)

"""The two Arrow tables of a run: their columns, shared by the writer and the reader."""

from __future__ import annotations

import pyarrow as pa

PROBES = pa.schema(
    [
        ("step", pa.int64()),
        ("probe", pa.string()),
        ("subject", pa.string()),
        ("index", pa.int32()),
        ("value", pa.float64()),
    ]
)


def steps_schema(parameters: int) -> pa.Schema:
    """Columns of `steps.arrow` for so many parameters. Norms are L2; absent numbers are NaN."""
    return pa.schema(
        [
            ("step", pa.int64()),
            ("elapsed_s", pa.float64()),
            ("loss", pa.float64()),
            ("lr", pa.list_(pa.float64())),
            ("global_norm", pa.float64()),
            ("loss_scale", pa.float64()),
            ("max_norm", pa.float64()),
            ("skipped", pa.bool_()),
            ("nonfinite", pa.int64()),
            ("micro_steps", pa.int32()),
            ("grad_norm", pa.list_(pa.float32(), parameters)),
            ("grad_max", pa.list_(pa.float32(), parameters)),
        ]
    )

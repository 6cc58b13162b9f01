"""What an endpoint costs when nobody asks it, and what an answer costs: an estimate, for an order of magnitude.

The figures were written down in 2026-11 without AWS's own price list at hand; public tables differ among themselves by up to
20 %, and prices differ by region. What counts is https://aws.amazon.com/sagemaker/ai/pricing/.
"""

from __future__ import annotations

from animl_pipeline.config import EndpointConfig

AS_OF = "an estimate of 2026-11, not AWS's price list"
GB_SECOND = 0.00002
"""Dollars for a second's work of a serverless endpoint, per GB of its memory."""
HOUR = {
    "ml.t2.medium": 0.056,
    "ml.m5.large": 0.115,
    "ml.m5.xlarge": 0.23,
    "ml.c5.large": 0.102,
    "ml.c5.xlarge": 0.204,
    "ml.c6i.large": 0.102,
    "ml.c6i.xlarge": 0.204,
    "ml.g4dn.xlarge": 0.736,
    "ml.g5.xlarge": 1.408,
}
"""Dollars for an hour of an instance that hosts an endpoint."""
HOURS_A_MONTH = 730


def cost(where: EndpointConfig) -> str:
    """One line: what the endpoint costs at rest, and what work costs where it is paid for by work."""
    if where.instance_type is None:
        second = where.memory_mb / 1024 * GB_SECOND
        return f"$0 at rest; ${second:.5f} a second of work, so about ${second * 0.2 * 10_000:.2f} for 10,000 answers of 0.2 s ({AS_OF})"
    if where.instance_type not in HOUR:
        return (
            f"{where.instances} x {where.instance_type} day and night; its price is not known here, see https://aws.amazon.com/sagemaker/ai/pricing/"
        )
    hour = HOUR[where.instance_type] * where.instances
    return f"${hour:.3f} an hour, asked or not: about ${hour * HOURS_A_MONTH:.0f} a month ({AS_OF})"

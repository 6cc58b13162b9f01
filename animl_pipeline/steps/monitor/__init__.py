"""The step `monitor`: how the model in service does, by what people validated in Animl since."""

from typing import TYPE_CHECKING

from animl_pipeline.core.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from animl_pipeline.steps.monitor.monitor_result_in_words import Alarm, ServiceStatus
    from animl_pipeline.steps.monitor.read_animl import ServiceLabels, read_random_sample, read_service_labels
    from animl_pipeline.steps.monitor.service_outcomes import ServedModel
    from animl_pipeline.steps.monitor.step import PAGE_FILE, REVIEW_PAGE, monitor_service, read_status
    from animl_pipeline.steps.monitor.unreviewed_look import UnreviewedLook

__all__ = [
    "PAGE_FILE",
    "REVIEW_PAGE",
    "Alarm",
    "ServedModel",
    "ServiceLabels",
    "ServiceStatus",
    "UnreviewedLook",
    "monitor_service",
    "read_random_sample",
    "read_service_labels",
    "read_status",
]
__getattr__ = lazy_exports(
    __name__,
    ServiceLabels="read_animl",
    read_random_sample="read_animl",
    read_service_labels="read_animl",
    ServedModel="service_outcomes",
    Alarm="monitor_result_in_words",
    ServiceStatus="monitor_result_in_words",
    PAGE_FILE="step",
    REVIEW_PAGE="step",
    UnreviewedLook="unreviewed_look",
    monitor_service="step",
    read_status="step",
)

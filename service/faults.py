"""What keeps the engine from answering, one class each. They know no HTTP."""

__all__ = ["Closed", "DeadlineExceeded", "NotReady", "QueueFull", "TooManyRequests", "WorkerDied"]


class _ComeBack(Exception):
    """The same request may be answered later."""

    def __init__(self, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """When to come back, seconds, where that was measured."""


class NotReady(_ComeBack):
    """The model is not warm yet, or could not be warmed, or is stuck."""

    code = "not_ready"


class Closed(_ComeBack):
    """The service is shutting down and takes no more work."""

    code = "draining"


class QueueFull(_ComeBack):
    """As much work waits as may wait."""

    code = "queue_full"


class TooManyRequests(_ComeBack):
    """As many requests are under way as may be."""

    code = "too_many_requests"


class WorkerDied(_ComeBack):
    """The thread that worked on it ended; the work may be sent again."""

    code = "worker_died"


class DeadlineExceeded(Exception):
    """The answer took longer than the deadline."""

    code = "deadline_exceeded"

"""Distinct types for the ids that travel through the system; all are opaque strings."""

from typing import NewType

ExecutionId = NewType("ExecutionId", str)
EventId = NewType("EventId", str)
ProjectId = NewType("ProjectId", str)
UserId = NewType("UserId", str)
ApiKeyId = NewType("ApiKeyId", str)
SessionId = NewType("SessionId", str)
DeadLetterId = NewType("DeadLetterId", str)
NotificationId = NewType("NotificationId", str)

"""What task.generate needs: a task that writes, and no privacy under which its scores would be withheld."""

from collections.abc import Iterator

from fedpeft.catalogue.finding import Finding
from fedpeft.config.model import RunConfig
from fedpeft.tasks import TASKS
from fedpeft.tasks.generated import GENERATED

__all__ = ["generation_findings"]


def generation_findings(config: RunConfig) -> Iterator[Finding]:
    """Of answers that are generated in evaluations."""
    task, metric = config.task, config.rounds.metric
    if metric in GENERATED and task.record.generates and not task.generate:
        yield Finding(
            key="rounds.metric",
            reads=("task.generate",),
            expected="task.generate above 0, which is what measures it",
            found=f'"{metric}" without',
            remedy="Set task.generate = 32.",
        )
    if not task.generate:
        return
    if not task.record.generates:
        writing = ", ".join(record.name for record in TASKS.values() if record.generates)
        yield Finding(
            key="task.generate",
            reads=("task.kind",),
            expected=f"0 for {task.kind}: answers are generated for {writing}",
            found=str(task.generate),
        )
    if config.privacy.unit != "none":
        yield Finding(
            key="task.generate",
            reads=("privacy.unit",),
            expected="0 under [privacy], which releases no score of what is generated",
            found=str(task.generate),
            remedy="Evaluate the result instead: fedpeft adapter eval RUN --data FILE --generate 32.",
        )

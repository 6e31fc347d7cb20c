"""pytest-xdist's schedule by files, for a session that a crashed worker does not hold for ever.

pytest-xdist 3.8 puts everything that a crashed worker was ever given back into its queue. Files of which all is done
are then "run" again: no report comes from them, so nobody asks for more, and every worker keeps its last test, which it
does not begin before it has the next. CI waited for that until its 90 minutes were over.
"""

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

__all__ = ["Schedule"]


class Schedule(LoadFileScheduling):
    """A crashed worker's tests that were not run go first, and the one that it died of is not run again."""

    def remove_node(self, node: WorkerController) -> str | None:
        """The test during which the worker crashed; None: it had nothing to do."""
        workload = self.assigned_work.pop(node)
        left = {scope: [name for name, done in unit.items() if not done] for scope, unit in workload.items()}
        crashed = next((name for names in left.values() for name in names), None)
        for scope, names in reversed(left.items()):
            if rest := {name: False for name in names if name != crashed}:
                self.workqueue[scope] = rest
                self.workqueue.move_to_end(scope, last=False)
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed

    def _reschedule(self, node: WorkerController) -> None:
        """Gives it files until it has two tests: with one alone it waits for the next and reports nothing."""
        if node not in self.registered_collections:  # it has just been started
            return
        super()._reschedule(node)
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)

"""The part of a local federation's device that trains: `python -m fedpeft_sim.local_worker`, started by its agent."""

from fedpeft.child import answer_parent
from fedpeft_sim.local_process import begun_by_seed

if __name__ == "__main__":
    answer_parent(begun_by_seed)

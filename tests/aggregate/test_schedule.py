"""Which blocks are due: every block some time, ReLoRA's one cycle at a time, AdaLoRA's score until the choice."""

from fedpeft.adapter import AdapterSpec, BlockSpec, TensorSpec
from fedpeft.aggregate.schedule import due_blocks, round_of
from fedpeft.config.model import AdaLora, Adapter, BitFit, Lora, ReLora
from fedpeft.ids import BlockId


def spec_of(**blocks: bool) -> AdapterSpec:
    def one(name: str, trainable: bool) -> BlockSpec:
        tensor = TensorSpec(name=name, shape=(2,))
        return BlockSpec(
            block_id=BlockId(name), method=name.split(".", maxsplit=1)[0], tensors=(tensor,), trainable=trainable
        )

    return AdapterSpec(blocks=tuple(one(name.replace("_", "."), trainable) for name, trainable in blocks.items()))


def test_a_method_without_a_rule_trains_its_trainable_blocks_in_every_round() -> None:
    spec = spec_of(bitfit=True, lora_A=False, lora_B=True)
    for round_id in (1, 7):
        assert due_blocks(spec, Adapter(bitfit=BitFit(), lora=Lora()), round_id) == {"bitfit", "lora.B"}


def test_relora_trains_one_cycle_at_a_time_and_the_last_to_the_end() -> None:
    spec = spec_of(relora_A_c1=False, relora_B_c1=True, relora_B_c2=True, relora_B_c3=True)
    adapter = Adapter(relora=ReLora(cycles=3, rounds_each=2))
    due = [due_blocks(spec, adapter, round_id) for round_id in range(1, 9)]
    assert due == [{f"relora.B.c{cycle}"} for cycle in (1, 1, 2, 2, 3, 3, 3, 3)]


def test_adalora_measures_importance_until_the_choice_is_final() -> None:
    spec = spec_of(adalora_mask=False, adalora=True, adalora_score=True)
    adapter = Adapter(adalora=AdaLora(prune_until=3))
    assert due_blocks(spec, adapter, 3) == {"adalora", "adalora.score"}
    assert due_blocks(spec, adapter, 4) == {"adalora"}


def test_a_gradient_start_sums_a_once_and_everything_else_waits_and_counts_from_the_round_after() -> None:
    spec = spec_of(lora_A_t2=True, lora_B_t2=True, relora_B_c1=True, relora_B_c2=True, head=True)
    adapter = Adapter(lora=Lora(rank=2, start="gradient"), relora=ReLora(cycles=2, rounds_each=1))
    due = [due_blocks(spec, adapter, round_id) for round_id in (1, 2, 3)]
    assert due == [{"lora.A.t2"}, {"lora.B.t2", "relora.B.c1", "head"}, {"lora.B.t2", "relora.B.c2", "head"}]


def test_the_round_follows_from_its_first_step() -> None:
    assert [round_of(step, 12) for step in (0, 12, 24)] == [1, 2, 3]


def test_a_run_that_starts_from_class_means_measures_them_first_and_then_trains_as_if_that_round_had_not_been() -> None:
    spec = spec_of(relora_A_c1=False, relora_B_c1=True, relora_B_c2=True, head=True)
    adapter = Adapter(relora=ReLora(cycles=2, rounds_each=1), head_start="class-means")
    due = [due_blocks(spec, adapter, round_id) for round_id in (1, 2, 3)]
    assert due == [{"head"}, {"head", "relora.B.c1"}, {"head", "relora.B.c2"}]
    without = spec_of(relora_A_c1=False, relora_B_c1=True, relora_B_c2=True)
    assert due_blocks(without, adapter, 1) == {"relora.B.c1"}


def test_a_head_that_is_measured_again_is_never_trained_and_the_methods_count_the_rounds_that_train() -> None:
    spec = spec_of(relora_A_c1=False, relora_B_c1=True, relora_B_c2=True, head=True)
    adapter = Adapter(relora=ReLora(cycles=2, rounds_each=1), head_start="class-means", head_refresh=2)
    due = [due_blocks(spec, adapter, round_id) for round_id in (1, 2, 3, 4, 5)]
    assert due == [{"head"}, {"relora.B.c1"}, {"head"}, {"relora.B.c2"}, {"head"}]
    assert [adapter.measuring_rounds(count) for count in range(6)] == [0, 1, 1, 2, 2, 3]

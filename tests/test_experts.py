import pytest

from moe_interp import Expert, ExpertSet


def test_a_label_reads_back_as_the_expert_it_prints():
    assert Expert.parse(str(Expert(12, 103))) == Expert(12, 103)


@pytest.mark.parametrize("label", ["L7", "7E3", "L7E3x", "L-1E3", ""])
def test_a_malformed_label_is_refused_with_the_form_it_needs(label):
    with pytest.raises(ValueError, match=r"written like 'L7E3' \(layer 7, expert 3\), got"):
        Expert.parse(label)


def test_negative_numbers_are_no_experts():
    with pytest.raises(ValueError, match=r"`layer` must be an integer of at least 0, got -1"):
        Expert(-1, 0)


def test_a_set_is_sorted_by_layer_then_expert_and_free_of_repeats():
    chosen = ExpertSet(["L9E1", (2, 10), Expert(2, 9), (9, 1)])
    assert [str(expert) for expert in chosen] == ["L2E9", "L2E10", "L9E1"]


def test_set_algebra():
    left, right = ExpertSet.parse("L0E1,L0E2"), ExpertSet.parse("L0E2,L1E0")
    assert str(left | right) == "L0E1,L0E2,L1E0"
    assert str(left & right) == "L0E2"
    assert str(left - right) == "L0E1"


def test_equal_sets_hash_alike_and_the_empty_text_is_the_empty_set():
    assert hash(ExpertSet.parse("L1E2,L0E1")) == hash(ExpertSet([(0, 1), (1, 2)]))
    assert ExpertSet.parse("") == ExpertSet()


def test_by_layer_groups_the_ids():
    assert ExpertSet.parse("L3E8,L3E9,L1E0").by_layer() == {1: (0,), 3: (8, 9)}

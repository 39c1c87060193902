import pytest

from prism_cli import processes
from prism_cli.assembly.run_folder import check_processes
from prism_cli.errors import CheckpointError, RecipeError
from prism_cli.trainers.arguments import RolloutBatch, deepspeed_settings


def test_one_process_waits_for_nobody():
    assert processes.gather("a") == ["a"]
    assert processes.from_main(lambda: 3) == 3
    with processes.main_first():
        processes.barrier()


def test_an_error_of_the_main_process_is_the_one_that_is_raised():
    def fail():
        raise CheckpointError("no such folder", "give another")

    with pytest.raises(CheckpointError, match="no such folder"):
        processes.from_main(fail)


def test_another_number_of_processes_than_the_recipe_says_is_refused(monkeypatch):
    with pytest.raises(RecipeError, match="and this is one alone"):
        check_processes("sft", 2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_processes("sft", 2, nodes=2)
    with pytest.raises(RecipeError, match="started on 4 processes") as caught:
        check_processes("sft", 8)
    assert "launch.processes=4" in caught.value.hint
    with pytest.raises(RecipeError, match="runs as one process"):
        check_processes("eval")


def test_a_step_is_cut_over_all_processes():
    found = RolloutBatch(3, 4, 2, 2, 48, 1.0).arguments()
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == (2, 3)


def test_a_step_that_does_not_divide_names_the_micro_batches_that_do():
    with pytest.raises(ValueError, match="micro_batch may be 1, 2, 3, 6"):
        RolloutBatch(3, 4, 4, 2, 48, 1.0).arguments()


def test_the_end_of_another_process_is_told_as_such(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(processes.PrismError, match="another training process ended"), processes.failing_together():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="a bug"), processes.failing_together():
        raise RuntimeError("a bug")


def test_only_zero_3_moves_weights_to_main_memory():
    two, three = (deepspeed_settings(zero, offload=True)["zero_optimization"] for zero in (2, 3))
    assert "offload_param" not in two
    assert three["offload_param"]["device"] == two["offload_optimizer"]["device"] == "cpu"

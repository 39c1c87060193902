"""What we override or call in TRL and transformers beyond their public promise; an upgrade that moves it fails here."""

import inspect
import re

import pytest
from accelerate.data_loader import DataLoaderShard
from transformers import ProcessorMixin, Trainer, TrainerCallback
from transformers.models.qwen3_vl import Qwen3VLModel, Qwen3VLProcessor
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

SEAMS = [
    (GRPOTrainer._generate_and_score_completions, ["self", "inputs"]),
    (
        GRPOTrainer._generate_single_turn,
        ["self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
    ),
    (GRPOTrainer._calculate_rewards, ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
    (GRPOTrainer._log_metric, ["self", "name", "value"]),
    (GRPOTrainer._get_train_sampler, ["self", "dataset"]),
    (GRPOTrainer.get_train_dataloader, ["self"]),
    (GRPOTrainer._compute_loss, ["self", "model", "inputs"]),
    (GRPOTrainer._prepare_inputs, ["self", "generation_batch"]),
    (
        RepeatSampler.__init__,
        ["self", "data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed"],
    ),
    (VLLMGeneration.sync_weights, ["self"]),
    (VLLMGeneration.generate, ["self", "prompts", "images", "num_generations", "profiler"]),
    (Trainer._save_checkpoint, ["self", "model", "trial"]),
    (Trainer._load_best_model, ["self"]),
    (
        Trainer._maybe_log_save_evaluate,
        [
            "self",
            "tr_loss",
            "grad_norm",
            "model",
            "trial",
            "epoch",
            "ignore_keys_for_eval",
            "start_time",
            "learning_rate",
        ],
    ),
    (TrainerCallback.on_save, ["self", "args", "state", "control", "kwargs"]),
    (TrainerCallback.on_train_begin, ["self", "args", "state", "control", "kwargs"]),
    (Qwen3VLProcessor._get_num_multimodal_tokens, ["self", "image_sizes", "video_sizes", "kwargs"]),
]


@pytest.mark.parametrize(("method", "parameters"), SEAMS, ids=[method.__qualname__ for method, _ in SEAMS])
def test_a_private_method_takes_these_parameters(method, parameters):
    assert list(inspect.signature(method).parameters) == parameters


@pytest.mark.parametrize(
    "option",
    [
        "num_generations",
        "num_generations_eval",
        "max_completion_length",
        "temperature",
        "generation_kwargs",
        "epsilon",
        "epsilon_high",
        "delta",
        "beta",
        "loss_type",
        "importance_sampling_level",
        "reward_weights",
        "steps_per_generation",
    ],
)
def test_grpo_has_the_option(option):
    assert option in GRPOConfig.__dataclass_fields__


@pytest.mark.parametrize("option", ["max_length", "completion_only_loss"])
def test_sft_has_the_option(option):
    assert option in SFTConfig.__dataclass_fields__


@pytest.mark.parametrize("trainer", [GRPOTrainer, SFTTrainer])
def test_a_trainer_takes_what_we_give_it(trainer):
    wanted = {"model", "args", "train_dataset", "eval_dataset", "processing_class", "callbacks", "peft_config"}
    assert wanted <= set(inspect.signature(trainer.__init__).parameters)


def test_rewards_are_computed_inside_generation_and_before_advantages():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert source.index("self._calculate_rewards(") < source.index('"advantages": ')


def test_a_generation_is_about_the_rows_it_is_given():
    """Dynamic sampling gives it other rows than the data loader's, and lays out anew what it returns, name by name."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    known = set(re.findall(r'output\["(\w+)"\]|^            "(\w+)": ', source, re.M))
    names = {name for pair in known for name in pair if name}
    assert names == {
        *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch"),
        *("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps", "importance_sampling_ratio"),
        *("pixel_values", "image_grid_thw", "num_images", "token_type_ids", "mm_token_type_ids", "tool_mask"),
        *("pixel_attention_mask", "spatial_shapes", "image_sizes", "image_position_ids", "num_tiles"),
    }


def test_vllm_is_started_by_the_name_we_put_another_in_place_of():
    source = inspect.getsource(VLLMGeneration._init_vllm)
    assert "self.llm = LLM(" in source
    assert "seed=accelerator.process_index // self.tensor_parallel_size" in source


def test_all_log_probabilities_have_the_heads_bias():
    """There tokens that are never sampled are taken out of the policy's distribution, as they are out of vLLM's."""
    assert "weight, bias = lm_head.weight, lm_head.bias" in inspect.getsource(add_fused_lm_head)


def test_the_token_mean_is_over_the_number_of_tokens_in_the_batch():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert 'normalizer = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes' in source


def test_the_optimiser_steps_after_its_callback():
    """There a step without loss is kept from moving weights by momentum and decay."""
    source = inspect.getsource(Trainer._run_epoch)
    assert source.index("on_pre_optimizer_step(") < source.index("self.optimizer.step()")
    assert source.index("_clip_grad_norm(") < source.index("on_pre_optimizer_step(")


def test_metrics_are_lists_of_values_by_mode():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert 'self._metrics[mode][f"rewards/{reward_func_name}/mean"].append(' in source


def test_the_dataset_keeps_its_columns_for_rewards():
    assert "for key in inputs[0] if key not in" in inspect.getsource(GRPOTrainer._calculate_rewards)


def test_the_save_callback_runs_after_the_trainer_wrote_its_files():
    source = inspect.getsource(Trainer._maybe_log_save_evaluate)
    assert source.index("self._save_checkpoint(") < source.index("on_save(")


def test_a_data_loader_takes_its_batches_one_step_early():
    source = inspect.getsource(DataLoaderShard.__iter__)
    assert source.index("next_batch = next(dataloader_iter)") < source.index("yield current_batch")


def test_a_trainer_begins_after_it_loaded_its_checkpoint():
    source = inspect.getsource(Trainer._inner_training_loop)
    assert source.index("self._prepare_for_training(") < source.index("on_train_begin(") < source.index("_run_epoch(")


def test_the_model_has_one_processor_and_its_own_positions():
    assert issubclass(Qwen3VLProcessor, ProcessorMixin)
    assert "image_grid_thw" in inspect.signature(Qwen3VLModel.get_rope_index).parameters

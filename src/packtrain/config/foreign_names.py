"""Decides which setting is meant by a name of nanoGPT, litgpt, transformers and programs like them."""

# The settings that a name means, most likely first, and what else there is to know. No setting: there is none of that kind.
_Meaning = tuple[tuple[str, ...], str]

_BATCH: _Meaning = (
    ("train.micro_batch_size", "train.global_batch_tokens"),
    "the first is in rows on one process, the second in tokens for a whole step",
)
_ACCUMULATION: _Meaning = (
    ("train.global_batch_tokens",),
    "the accumulation follows from it, train.micro_batch_size and the number of processes",
)
_BETAS: _Meaning = (("optim.betas",), "write both, as optim.betas=[0.9,0.95]")
_PRECISION: _Meaning = (("train.precision",), "write train.precision=bf16, fp16, fp32 or auto")
_DROPOUT: _Meaning = (("train.dropout",), "it is in the embedded tokens and the residual branches, in training alone")
_BIAS: _Meaning = ((), "the model has no biases, as Llama has none")
_WARMUP_SHARE: _Meaning = (("schedule.warmup_steps",), "it is in steps, not a share of them")
_MIN_LR: _Meaning = (("schedule.min_lr_ratio",), "it is a share of optim.lr, not a learning rate")
_HELD_OUT: _Meaning = (("split.validation_fraction",), "the split is made by `packtrain prepare`")


def _one(*settings: str) -> _Meaning:
    return settings, ""


_NAMES: dict[str, _Meaning] = {
    # The shape.
    **dict.fromkeys(("n_layer", "n_layers", "num_layers", "depth"), _one("model.num_hidden_layers")),
    **dict.fromkeys(("n_head", "n_heads", "num_heads"), _one("model.num_attention_heads")),
    **dict.fromkeys(("n_kv_head", "n_kv_heads", "num_kv_heads", "n_query_groups"), _one("model.num_key_value_heads")),
    **dict.fromkeys(
        ("n_embd", "d_model", "dim", "hidden_dim", "embed_dim", "embedding_dim", "model_dim", "n_embed"),
        _one("model.hidden_size"),
    ),
    **dict.fromkeys(("n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "mlp_dim"), _one("model.intermediate_size")),
    **dict.fromkeys(
        ("block_size", "context_length", "max_seq_len", "max_seq_length", "seq_length", "sequence_length", "n_ctx"),
        _one("data.seq_len"),
    ),
    **dict.fromkeys(("n_positions", "max_position_embedding"), _one("model.max_position_embeddings", "data.seq_len")),
    **dict.fromkeys(("head_size", "d_head"), _one("model.head_dim")),
    **dict.fromkeys(("n_vocab", "padded_vocab_size", "vocabulary_size"), _one("model.vocab_size")),
    **dict.fromkeys(("tie_embeddings", "weight_tying", "tied_embeddings"), _one("model.tie_word_embeddings")),
    **dict.fromkeys(("rope_base", "theta"), _one("model.rope_theta")),
    **dict.fromkeys(("norm_eps", "layer_norm_epsilon", "layer_norm_eps"), _one("model.rms_norm_eps")),
    **dict.fromkeys(("dropout", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"), _DROPOUT),
    **dict.fromkeys(("bias", "attention_bias", "mlp_bias"), _BIAS),
    # The length and the batch.
    **dict.fromkeys(("max_iters", "max_steps", "num_steps", "num_iterations", "total_steps"), _one("train.steps")),
    **dict.fromkeys(("max_tokens", "num_tokens", "total_tokens"), _one("train.tokens")),
    **dict.fromkeys(("num_train_epochs", "epochs", "num_epochs", "max_epochs"), _one("train.epochs")),
    **dict.fromkeys(("batch_size", "per_device_train_batch_size", "device_batch_size", "train_batch_size"), _BATCH),
    **dict.fromkeys(
        ("global_batch_size", "total_batch_size"), (("train.global_batch_tokens",), "it is in tokens, not rows")
    ),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum_steps", "gradient_accumulation_iters"), _ACCUMULATION),
    # The optimizer and the schedule.
    **dict.fromkeys(("learning_rate", "max_lr", "peak_lr"), _one("optim.lr")),
    **dict.fromkeys(("min_lr", "min_learning_rate", "decay_lr"), _MIN_LR),
    **dict.fromkeys(("warmup_iters", "lr_warmup_steps", "num_warmup_steps", "warmup"), _one("schedule.warmup_steps")),
    "warmup_ratio": _WARMUP_SHARE,
    "lr_decay_iters": (("train.steps",), "the learning rate decays until the last step"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "lr_schedule", "scheduler"), _one("schedule.name")),
    **dict.fromkeys(("optimizer", "optimizer_name", "optimizer_type"), _one("optim.name")),
    **dict.fromkeys(("beta1", "beta2", "adam_beta1", "adam_beta2"), _BETAS),
    **dict.fromkeys(("adam_epsilon", "epsilon"), _one("optim.eps")),
    **dict.fromkeys(("max_grad_norm", "max_norm", "clip_grad", "gradient_clip_val", "clip"), _one("train.grad_clip")),
    "wd": _one("optim.weight_decay"),
    # The machine.
    **dict.fromkeys(("bf16", "fp16", "tf32", "dtype", "torch_dtype", "mixed_precision", "bf16_full_eval"), _PRECISION),
    "torch_compile": _one("train.compile"),
    "gradient_checkpointing": (("train.activation_gb",), "as many blocks are recomputed as this much memory needs"),
    **dict.fromkeys(("fsdp", "strategy", "ddp"), _one("parallel.mode")),
    # What is written, and when.
    **dict.fromkeys(("eval_interval", "eval_steps", "val_interval", "eval_every"), _one("evaluate.every")),
    **dict.fromkeys(("eval_iters", "max_eval_iters"), (("evaluate.tokens",), "it is in tokens")),
    **dict.fromkeys(("save_steps", "save_interval", "save_every", "checkpoint_interval"), _one("checkpoint.every")),
    "save_total_limit": _one("checkpoint.keep"),
    **dict.fromkeys(("log_interval", "logging_steps", "log_every"), _one("log.every")),
    **dict.fromkeys(("wandb_log", "use_wandb"), _one("track.wandb")),
    **dict.fromkeys(("wandb_project", "project_name"), _one("track.project")),
    "report_to": (("track.wandb", "track.tensorboard"), "write true for each that you want"),
    "out_dir": ((), "give the folder as --run FOLDER"),
    "output_dir": ((), "give the folder as --run FOLDER"),
    "init_from": ((), "write --resume to continue a run"),
    "resume_from_checkpoint": ((), "write --resume, or `packtrain resume RUN`"),
    # The data.
    **dict.fromkeys(("data_dir", "dataset_path", "data_path", "train_data"), _one("data.dataset", "source.path")),
    **dict.fromkeys(("dataset_name", "repo_id"), _one("source.repo")),
    "dataset_config_name": _one("source.config"),
    **dict.fromkeys(("text_field", "text_key", "dataset_text_field", "content_key"), _one("source.text_column")),
    **dict.fromkeys(("val_split_fraction", "test_size", "val_fraction", "validation_split_percentage"), _HELD_OUT),
    **dict.fromkeys(("num_proc", "num_workers", "preprocessing_num_workers"), _one("prepare.workers")),
    **dict.fromkeys(("tokenizer_name", "tokenizer_name_or_path", "tokenizer_path"), _one("tokenizer.name")),
    **dict.fromkeys(("packing", "sample_packing"), _one("data.packing")),
}


def foreign_names() -> dict[str, _Meaning]:
    """The settings that each name of another program means, and a remark."""
    return dict(_NAMES)


def find_meaning(name: str) -> _Meaning | None:
    """The settings that the last part of a name means in another program, and a remark; None if it is not one of theirs."""
    return _NAMES.get(name.rsplit(".", 1)[-1].removeprefix("--").replace("-", "_").lower())

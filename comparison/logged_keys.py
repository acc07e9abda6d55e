"""The roles of the keys of a logged run.

A comparison loads neither plugins nor torch, so the log of a run records the role of each of its
keys. Logs of earlier versions do not; the roles of their keys are listed here.
"""

from __future__ import annotations

from collections.abc import Mapping

from options import Role

_BEFORE_ROLES_WERE_LOGGED = {
    Role.BOOKKEEPING: "arch_preset out_dir run_name resume plugins allow_changed_plugins "
    "eval_interval log_interval log_to checkpoint_minutes keep_checkpoints async_save "
    "sample_interval sample_tokens console verbose log_attention_logits",
    Role.DATA: "init_from dataset sequence_length batch_size gradient_accumulation_steps "
    "eval_tokens",
    Role.SEED: "seed data_seed",
    Role.LENGTH: "max_iters max_minutes warmup_iters lr_decay_iters",
    Role.RECIPE: "learning_rate lr_schedule min_lr wsd_decay_fraction beta1 beta2 adam_eps "
    "weight_decay grad_clip max_bad_steps dtype tf32 optimizer objective z_loss_coef adapter "
    "qk_clip",
    Role.EXECUTION: "attention_backend device compile parallelism shard_size tensor_parallel "
    "activation_checkpointing",
}
"""The role of every key except architecture keys and those added by `saved_configs.upgraded`."""

_ROLES = frozenset(Role)
_EARLIER_ROLES = {
    key: role for role, keys in _BEFORE_ROLES_WERE_LOGGED.items() for key in keys.split()
}
EARLIER_KEYS = _EARLIER_ROLES.keys()

_COUNTED = {
    "dataset": ("data", "fingerprint"),
    "eval_tokens": ("data", "val_fingerprint"),
    "dtype": ("environment", "dtype"),
    "ffn_multiplier": ("config", "ffn_hidden"),
    "ffn_multiple_of": ("config", "ffn_hidden"),
}


def role_of(key: str, recorded: Mapping[str, str]) -> Role:
    """The role of a key as recorded by its run, or by this table for older logs."""
    if recorded.get(key) in _ROLES:
        return Role(recorded[key])
    return _EARLIER_ROLES.get(key, Role.ARCHITECTURE)


def compared_by(key: str) -> tuple[str, str] | None:
    """The section and name under which a log may have the value that results from a key, by which
    runs are then compared instead; None if there is none."""
    return _COUNTED.get(key)

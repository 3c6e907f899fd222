"""The run that tests/test_processes.py shares among processes: 60 steps, one a dispatch, saved every 10."""

from patchnets.config import common


def get_config():
    return common.base(
        dataset=dict(name="digits"),
        image_size=8,
        model=dict(name="mlp_mixer", patch_size=4, depth=2, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32),
        augment=dict(translate=0.1, mixup=0.2),
        batch_size=64,
        ema_decay=0.9,
        total_steps=60,
        eval_every_steps=20,
        checkpoint=dict(save_interval_steps=10, max_to_keep=3),
        steps_per_call=1,
        optimizer=dict(learning_rate=1e-2, grad_clip_norm=1.0),
        tensorboard=False,
        plots=False,
    )

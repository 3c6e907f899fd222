"""The run that tests/test_kill.py starts and kills: 240 steps, one a dispatch, validated every 60, saved every 20."""

from patchnets.config import common


def get_config():
    return common.base(
        dataset=dict(name="digits"),
        image_size=8,
        model=dict(
            name="mlp_mixer",
            patch_size=2,
            depth=2,
            hidden_dim=64,
            tokens_mlp_dim=32,
            channels_mlp_dim=128,
            dropout_rate=0.1,
        ),
        augment=dict(flip=True, zoom=0.1, translate=0.1, mixup=0.2, cutmix=1.0),
        batch_size=64,
        ema_decay=0.95,
        total_steps=240,
        eval_every_steps=60,
        checkpoint=dict(save_interval_steps=20),
        steps_per_call=1,
        optimizer=dict(learning_rate=3e-3, grad_clip_norm=1.0),
        schedule=dict(warmup_epochs=1.0),
        tensorboard=False,
        plots=False,
    )

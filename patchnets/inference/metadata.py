"""What an exported folder says about itself to programs: config.json for timm, metadata of ONNX."""

from typing import Any

from patchnets import __version__
from patchnets.inference.programs import input_shape
from patchnets.run.model_spec import ModelSpec
from patchnets.weights.timm import TimmNetwork


def preprocessing(spec: ModelSpec) -> dict[str, Any]:
    """Return how an image becomes an input of the network, in the terms of timm and torchvision.

    Keys: image_size (pixels a side), channels, mean and std (per channel, of levels from 0 to 1), crop_pct (share of
    the shorter side in the center square that is kept), interpolation; exif_orientation, background and, for images of
    more than 8 bits, value_ranges, as in `patchnets.data.pixel_rules.PixelRules`. crop_pct is the product of the crop
    while decoding and that on the device; interpolation is that of the step that changes the size. shorter_side, if
    there is that key, takes the place of crop_pct: the pixels to which the shorter side is resized, of which the center
    of image_size is cut.
    """
    resized_on_device = abs(spec.decoded_size * spec.crop_pct - spec.image_size) >= 1
    return dict(
        image_size=spec.image_size,
        channels=spec.channels,
        mean=[level / 255 for level in spec.mean],
        std=[level / 255 for level in spec.std],
        crop_pct=spec.decoded_crop_pct * spec.crop_pct,
        interpolation="bilinear" if resized_on_device else spec.interpolation,
        **({} if spec.shorter_side is None else {"shorter_side": spec.shorter_side}),
        exif_orientation=spec.exif_orientation,
        background=spec.background,
        **({} if spec.value_ranges is None else {"value_ranges": spec.value_ranges}),
    )


def timm_config(spec: ModelSpec, network: TimmNetwork) -> dict[str, Any]:
    """Return the config.json that `timm.create_model("local-dir:...")` and transformers read."""
    values = preprocessing(spec)
    size = [spec.channels, spec.image_size, spec.image_size]
    # timm's classes take it as an object, and no other key says it to those who read this file.
    activation = {"act_layer": spec.fields["activation"]} if "activation" in spec.fields else {}
    args = network.entry_args if network.entry_point else network.class_args | activation
    return dict(
        architecture=network.entry_point or network.class_name,  # create_model refuses the name of a class
        num_classes=len(spec.classes),
        num_features=spec.fields["hidden_dim"],
        global_pool=network.pool,
        label_names=list(spec.classes),
        exif_orientation=values["exif_orientation"],  # timm refuses other keys in pretrained_cfg
        background=values["background"],
        **({} if spec.value_ranges is None else {"value_ranges": spec.value_ranges}),
        # transformers passes num_classes besides these
        model_args={name: value for name, value in args.items() if name != "num_classes"},
        pretrained_cfg=dict(
            tag="patchnets",
            custom_load=False,
            input_size=size,
            fixed_input_size="img_size" in network.class_args,
            interpolation=values["interpolation"],
            crop_pct=values["crop_pct"],
            crop_mode="center",
            mean=values["mean"],
            std=values["std"],
            num_classes=len(spec.classes),
            pool_size=None,
            first_conv=network.first_conv,
            classifier="head",
        ),
    )


def program_metadata(spec: ModelSpec, inputs: str, outputs: str) -> dict[str, Any]:
    """Return what a program needs to be used: its inputs and outputs, class names and preprocessing."""
    return dict(
        network=spec.network,
        classes=list(spec.classes),
        input=inputs,
        input_layout="NHWC",
        input_shape=["batch", *input_shape(spec, inputs)],
        output=outputs,
        loss=spec.loss,
        **preprocessing(spec),
        patchnets=__version__,
    )

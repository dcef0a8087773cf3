"""VasoMIM for the classification of frames: the encoder and one linear layer on its pooled features."""

import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_vasomim import VasoMIMConfig
from .modeling_vasomim import VasoMIMModel, VasoMIMPreTrainedModel


class VasoMIMForImageClassification(VasoMIMPreTrainedModel):
    """Labels of whole frames, such as the side of the coronary tree.

    For a linear probe, freeze the encoder with `freeze_encoder()` or `freeze_encoder=True` in the configuration; the
    features that the probe sees are those of [`~VasoMIMForImageClassification.pooled_features`].

    Example:
        >>> from vasomim_hf.presets import load_preset
        >>> config = load_preset("tiny", id2label={0: "left", 1: "right"}, label2id={"left": 0, "right": 1})
        >>> model = VasoMIMForImageClassification(config)
        >>> model(torch.zeros(2, 3, 224, 224), labels=torch.tensor([0, 1])).logits.shape
        torch.Size([2, 2])
    """

    accepts_loss_kwargs = False
    # a pre-training checkpoint has these besides the encoder
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^segmentor\."]

    def __init__(self, config: VasoMIMConfig):
        super().__init__(config)
        if config.num_labels < 1:
            raise ValueError(
                f"A classifier needs at least one label, got num_labels={config.num_labels}. Set `id2label` and "
                "`label2id`, or load `VasoMIMModel` for features."
            )
        self.vasomim = VasoMIMModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Classify frames.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised frames from the image processor, any size of at least one patch.
            labels (`torch.Tensor`, *optional*):
                By `config.problem_type`, which the first labels decide where it is not set, as in all of transformers:
                `"single_label_classification"`: integer ids of shape `(batch_size,)` in [0, num_labels), mean cross
                entropy; `"multi_label_classification"`: float 0 or 1 of shape `(batch_size, num_labels)`, binary cross
                entropy; `"regression"` (also where `num_labels` is 1): float of shape `(batch_size,)` or
                `(batch_size, num_labels)`, mean squared error.
            interpolate_pos_encoding (`bool`, defaults to `True`):
                Whether sizes other than `config.image_size` are accepted.

        Returns:
            `ImageClassifierOutput`: `logits` of shape `(batch_size, num_labels)`, and `loss` with labels, float32.

        Raises:
            ValueError: If a shape does not fit, or an id is out of range. On an accelerator ids are not looked at, since
                that would wait for it.
            TypeError: If an argument is unknown.
        """
        encoded = self.vasomim(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        logits = self.classifier(self._pool(encoded.last_hidden_state))
        loss = self._loss(logits.float(), labels) if labels is not None else None
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )

    def pooled_features(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """What the linear layer sees of frames.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised frames from the image processor.

        Returns:
            `torch.Tensor` of shape `(batch_size, hidden_size)`: by `config.classifier_pooling` the mean of the patches or
            the class token, after the last layer norm.
        """
        return self._pool(self.vasomim(pixel_values, **kwargs).last_hidden_state)

    def _pool(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states[:, 0] if self.config.classifier_pooling == "cls" else hidden_states[:, 1:].mean(dim=1)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        num_labels = self.config.num_labels
        if labels.shape[:1] != logits.shape[:1] or labels.numel() not in (len(logits), logits.numel()):
            raise ValueError(
                f"`labels` must have shape ({len(logits)},), or {tuple(logits.shape)} where a frame has several, got "
                f"{tuple(labels.shape)}."
            )
        integers = not labels.dtype.is_floating_point
        if integers and num_labels > 1 and self.config.problem_type in (None, "single_label_classification"):
            check_class_ids(labels, num_labels)
            labels = labels.long()
        return self.loss_function(labels, logits, self.config)


def check_class_ids(labels: torch.Tensor, num_labels: int) -> None:
    """Refuse ids of classes that do not exist.

    Args:
        labels (`torch.Tensor` of any shape): Integers. On an accelerator they are not looked at.
        num_labels (`int`): Number of classes.

    Raises:
        ValueError: If an id is outside [0, num_labels).
    """
    if labels.device.type != "cpu" or labels.numel() == 0 or torch.compiler.is_compiling():
        return
    # by numpy, so that no operation is added that would wait for a device
    ids = labels.detach().numpy()
    if ids.min() < 0 or ids.max() >= num_labels:
        raise ValueError(
            f"`labels` must be ids from 0 to {num_labels - 1}, got ids from {ids.min()} to {ids.max()}. Compare the data's "
            "labels with `config.id2label`."
        )


__all__ = ["VasoMIMForImageClassification"]

"""VasoMIM for image classification: the encoder and a linear layer on its pooled features."""

import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_vasomim import VasoMIMConfig
from .modeling_vasomim import VasoMIMModel, VasoMIMPreTrainedModel


class VasoMIMForImageClassification(VasoMIMPreTrainedModel):
    """Classifies whole frames, for example into left and right coronary artery.

    For a linear probe, freeze the encoder with `freeze_encoder()` or `freeze_encoder=True` in the configuration.
    [`~VasoMIMForImageClassification.pooled_features`] returns the features that the probe is trained on.

    Example:
        >>> from vasomim_hf.presets import load_preset
        >>> config = load_preset("tiny", id2label={0: "left", 1: "right"}, label2id={"left": 0, "right": 1})
        >>> model = VasoMIMForImageClassification(config)
        >>> model(torch.zeros(2, 3, 224, 224), labels=torch.tensor([0, 1])).logits.shape
        torch.Size([2, 2])
    """

    accepts_loss_kwargs = False
    # part of pre-training checkpoints, not of this model
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
                Normalised frames from the image processor; each side at least one patch.
            labels (`torch.Tensor`, *optional*):
                Depends on `config.problem_type`. If that is not set, the first labels determine it, as elsewhere in
                transformers. `"single_label_classification"`: integer ids of shape `(batch_size,)` in [0, num_labels), mean
                cross entropy. `"multi_label_classification"`: float 0 or 1 of shape `(batch_size, num_labels)`, binary cross
                entropy. `"regression"` (also if `num_labels` is 1): float of shape `(batch_size,)` or
                `(batch_size, num_labels)`, mean squared error.
            interpolate_pos_encoding (`bool`, defaults to `True`):
                Whether sizes other than `config.image_size` are accepted.

        Returns:
            `ImageClassifierOutput`: `logits` of shape `(batch_size, num_labels)`, and `loss` (float32) if `labels` are
            given.

        Raises:
            ValueError: If a shape does not match, or a class id is out of range. Ids on an accelerator are not
            checked, because that would force a synchronisation.
            TypeError: If an argument is unknown.
        """
        encoded = self.vasomim(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        logits = self.classifier(self._pool(encoded.last_hidden_state))
        loss = self._loss(logits.float(), labels) if labels is not None else None
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )

    def pooled_features(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Compute the features that the linear layer classifies.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised frames from the image processor.

        Returns:
            `torch.Tensor` of shape `(batch_size, hidden_size)`: after the final layer norm, the mean of the patch
            tokens or the class token, see `config.classifier_pooling`.
        """
        return self._pool(self.vasomim(pixel_values, **kwargs).last_hidden_state)

    def _pool(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states[:, 0] if self.config.classifier_pooling == "cls" else hidden_states[:, 1:].mean(dim=1)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        num_labels = self.config.num_labels
        if labels.shape[:1] != logits.shape[:1] or labels.numel() not in (len(logits), logits.numel()):
            raise ValueError(
                f"`labels` must have shape ({len(logits)},), or {tuple(logits.shape)} for multi-label "
                f"classification, got {tuple(labels.shape)}."
            )
        integers = not labels.dtype.is_floating_point
        if integers and num_labels > 1 and self.config.problem_type in (None, "single_label_classification"):
            check_class_ids(labels, num_labels)
            labels = labels.long()
        return self.loss_function(labels, logits, self.config)


def check_class_ids(labels: torch.Tensor, num_labels: int) -> None:
    """Raise an error for class ids that do not exist.

    Args:
        labels (`torch.Tensor` of any shape): Integers. Not checked on an accelerator.
        num_labels (`int`): Number of classes.

    Raises:
        ValueError: If an id is outside [0, num_labels).
    """
    if labels.device.type != "cpu" or labels.numel() == 0 or torch.compiler.is_compiling():
        return
    # numpy keeps this check out of traced and compiled graphs
    ids = labels.detach().numpy()
    if ids.min() < 0 or ids.max() >= num_labels:
        raise ValueError(
            f"`labels` must be ids from 0 to {num_labels - 1}, got ids from {ids.min()} to {ids.max()}. Compare the "
            "labels of the data set with `config.id2label`."
        )


__all__ = ["VasoMIMForImageClassification"]

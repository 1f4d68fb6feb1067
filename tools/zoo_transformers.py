"""The architectures of transformers for `zoo_catalogue.py`: class, changes of its configuration, inputs, note."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Inputs = dict[str, Tensor]


def tokens(length: int = 128) -> Tensor:
    return torch.randint(3, 900, (1, length))


def text(length: int = 128) -> Inputs:
    return {"input_ids": tokens(length), "attention_mask": torch.ones(1, length, dtype=torch.long)}


def answer(length: int = 128) -> Inputs:
    return text(length) | {"decoder_input_ids": tokens(32)}


def image(size: int = 224, channels: int = 3) -> Inputs:
    return {"pixel_values": torch.randn(1, channels, size, size)}


def caption(size: int = 224, length: int = 32) -> Inputs:
    return {"input_ids": tokens(length), "pixel_values": image(size)["pixel_values"]} | {
        "attention_mask": torch.ones(1, length, dtype=torch.long)
    }


def wave(samples: int = 16000) -> Inputs:
    return {"input_values": torch.randn(1, samples)}


def boxes(length: int = 128) -> Inputs:
    corners = torch.randint(0, 400, (1, length, 2))
    return text(length) | {"bbox": torch.cat([corners, corners + 20], -1)}


def series() -> Inputs:
    """Past values, their times and what was observed, of `TimeSeriesTransformer`."""
    return {
        "past_values": torch.randn(1, 55), "past_time_features": torch.randn(1, 55, 2),
        "past_observed_mask": torch.ones(1, 55), "future_values": torch.randn(1, 24),
        "future_time_features": torch.randn(1, 24, 2),
    }  # fmt: skip


SMALL = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 3, "num_attention_heads": 16}
FEW = {"vocab_size": 16000}
GROUPED = SMALL | FEW | {"num_key_value_heads": 4, "head_dim": 64}
SCALED = "3 layers of width 1024, 16,000 tokens"
Spec = tuple[str, dict[str, Any], Callable[[], Inputs]] | tuple[str, dict[str, Any], Callable[[], Inputs], str]
TRANSFORMERS: dict[str, Spec] = {
    "bert": ("BertForSequenceClassification", {}, text),
    "gpt2": ("GPT2LMHeadModel", {}, text),
    "t5": ("T5ForConditionalGeneration", {}, answer),
    "llama": ("LlamaForCausalLM", GROUPED, text, SCALED),
    "whisper": ("WhisperForConditionalGeneration", {}, lambda: {
        "input_features": torch.randn(1, 80, 3000), "decoder_input_ids": tokens(32)}),
    "wav2vec2": ("Wav2Vec2ForCTC", {}, wave),
    "clip": ("CLIPModel", {}, caption),
    "segformer": ("SegformerForSemanticSegmentation", {}, lambda: image(256)),
    "mamba": ("MambaForCausalLM", {"num_hidden_layers": 4} | FEW, lambda: {"input_ids": tokens(32)},
              "4 layers, 16,000 tokens, 32 in the text"),
    "distilbert": ("DistilBertForSequenceClassification", {}, text),
    "albert": ("AlbertForSequenceClassification", {
        "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}, text, "the base size"),
    "bart": ("BartForConditionalGeneration", {
        "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072},
        answer, "the base size"),
    "deberta": ("DebertaForSequenceClassification", {}, text),
    "electra": ("ElectraForSequenceClassification", {}, text),
    "qwen2": ("Qwen2ForCausalLM", GROUPED, text, SCALED),
    "falcon": ("FalconForCausalLM", {
        "hidden_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 16, **FEW}, text, SCALED),
    "vit": ("ViTForImageClassification", {}, image),
    "dpt": ("DPTForDepthEstimation", {
        "hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "num_attention_heads": 12,
        "backbone_out_indices": [2, 5, 8, 11], "neck_hidden_sizes": [96, 192, 384, 768]}, lambda: image(384),
        "base-size backbone"),
    "mistral": ("MistralForCausalLM", GROUPED, text, SCALED),
    "gemma": ("GemmaForCausalLM", GROUPED, text, SCALED),
    "layoutlm": ("LayoutLMForTokenClassification", {}, boxes),
    "detr": ("DetrForObjectDetection", {"use_timm_backbone": True, "backbone": "resnet50",
             "backbone_config": None, "use_pretrained_backbone": False}, lambda: image(320), "images of 320"),
    "opt": ("OPTForCausalLM", {}, text),
    "hubert": ("HubertForCTC", {}, wave),
    "blip": ("BlipForImageTextRetrieval", {}, lambda: caption(384)),
    "roberta": ("RobertaForSequenceClassification", {}, text),
    "gpt_neo": ("GPTNeoForCausalLM", {
        "hidden_size": 768, "num_layers": 4, "num_heads": 12, "attention_types": [[["global", "local"], 2]]}, text,
        "4 layers of width 768"),
    "gptj": ("GPTJForCausalLM", {"n_embd": 1024, "n_layer": 3, "n_head": 16, **FEW}, text, SCALED),
    "bloom": ("BloomForCausalLM", {"hidden_size": 1024, "n_layer": 3, "n_head": 16, **FEW}, text, SCALED),
    "phi": ("PhiForCausalLM", SMALL | FEW, text, SCALED),
    "mpnet": ("MPNetForSequenceClassification", {}, text),
    "xlnet": ("XLNetForSequenceClassification", {"n_layer": 6, "d_model": 768, "n_head": 12, "d_inner": 3072}, text,
              "6 layers of width 768"),
    "camembert": ("CamembertForSequenceClassification", {}, text),
    "deberta_v2": ("DebertaV2ForSequenceClassification", {
        "hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 3072,
        "relative_attention": True, "position_buckets": 256, "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm", "share_att_key": True, **FEW}, text, "as deberta-v3-small, 16,000 tokens"),
    "mt5": ("MT5ForConditionalGeneration", FEW, answer, "16,000 tokens"),
    "pegasus": ("PegasusForConditionalGeneration", {
        "encoder_layers": 4, "decoder_layers": 4, **FEW}, answer, "4 and 4 layers, 16,000 tokens"),
    "marian": ("MarianMTModel", {
        "d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 8,
        "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048}, answer, "the opus-mt size"),
    "deit": ("DeiTForImageClassification", {}, image),
    "beit": ("BeitForImageClassification", {"use_relative_position_bias": True}, image),
    "swin": ("SwinForImageClassification", {}, image),
    "swinv2": ("Swinv2ForImageClassification", {"window_size": 8, "image_size": 256}, lambda: image(256)),
    "convnext": ("ConvNextForImageClassification", {}, image),
    "convnextv2": ("ConvNextV2ForImageClassification", {}, image),
    "yolos": ("YolosForObjectDetection", {
        "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "image_size": [320, 320]},
        lambda: image(320), "the small size, images of 320"),
    "glpn": ("GLPNForDepthEstimation", {}, lambda: image(256)),
    "wavlm": ("WavLMForCTC", {}, wave),
    "sew": ("SEWForCTC", {}, wave),
    "speech_to_text": ("Speech2TextForConditionalGeneration", {}, lambda: {
        "input_features": torch.randn(1, 400, 80), "decoder_input_ids": tokens(32)}),
    "siglip": ("SiglipModel", {}, lambda: caption() | {"input_ids": tokens(64), "attention_mask": torch.ones(1, 64)}),
    "tapas": ("TapasForSequenceClassification", {}, lambda: text() | {
        "token_type_ids": torch.zeros(1, 128, 7, dtype=torch.long)}),
    "longformer": ("LongformerForSequenceClassification", {"attention_window": 128, "num_hidden_layers": 4},
                   lambda: text(256), "4 layers, a window of 128"),
    "big_bird": ("BigBirdForSequenceClassification", {"attention_type": "original_full"}, text, "full attention"),
    "reformer": ("ReformerForSequenceClassification", {"is_decoder": False, "axial_pos_shape": [16, 16]},
                 lambda: text(256)),
    "funnel": ("FunnelForSequenceClassification", {}, text),
    "fnet": ("FNetForSequenceClassification", {}, lambda: {"input_ids": tokens()}),
    "perceiver": ("PerceiverForSequenceClassification", {
        "d_model": 768, "num_latents": 256, "d_latents": 512, "num_self_attends_per_block": 6,
        "qk_channels": 256, "v_channels": 512}, text, "6 layers of width 512"),
    "time_series_transformer": ("TimeSeriesTransformerModel", {
        "prediction_length": 24, "context_length": 48, "num_time_features": 2, "d_model": 64}, series),
    "patchtst": ("PatchTSTForPrediction", {"context_length": 512, "num_input_channels": 7}, lambda: {
        "past_values": torch.randn(1, 512, 7)}),
    "patchtsmixer": ("PatchTSMixerForPrediction", {"context_length": 512, "num_input_channels": 7}, lambda: {
        "past_values": torch.randn(1, 512, 7)}),
    "rwkv": ("RwkvForCausalLM", {"hidden_size": 768, "num_hidden_layers": 4, **FEW}, lambda: {
        "input_ids": tokens(16)}, "4 layers of width 768, 16 tokens in the text"),
    "mobilebert": ("MobileBertForSequenceClassification", {}, text),
    "squeezebert": ("SqueezeBertForSequenceClassification", {}, text),
    "convbert": ("ConvBertForSequenceClassification", {}, text),
    "roformer": ("RoFormerForSequenceClassification", {"num_hidden_layers": 6}, text, "6 layers"),
    "nystromformer": ("NystromformerForSequenceClassification", {}, lambda: text(448)),
    "ibert": ("IBertForSequenceClassification", {"quant_mode": False}, text),
    "canine": ("CanineForSequenceClassification", {}, lambda: text(256)),
    "modernbert": ("ModernBertForSequenceClassification", {"num_hidden_layers": 6}, text, "6 layers"),
    "nomic_bert": ("NomicBertModel", {"num_hidden_layers": 6}, text, "6 layers"),
    "gpt_neox": ("GPTNeoXForCausalLM", SMALL | FEW, text, SCALED),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", {"n_layer": 6}, text, "6 layers"),
    "mpt": ("MptForCausalLM", {"d_model": 1024, "n_layers": 3, "n_heads": 16, **FEW}, text, SCALED),
    "stablelm": ("StableLmForCausalLM", SMALL | FEW | {"num_key_value_heads": 4}, text, SCALED),
    "phi3": ("Phi3ForCausalLM", SMALL | FEW | {"num_key_value_heads": 4, "pad_token_id": 0}, text, SCALED),
    "qwen3": ("Qwen3ForCausalLM", GROUPED, text, SCALED),
    "gemma2": ("Gemma2ForCausalLM", GROUPED, text, SCALED),
    "olmo": ("OlmoForCausalLM", SMALL | FEW, text, SCALED),
    "cohere": ("CohereForCausalLM", SMALL | FEW | {"num_key_value_heads": 4}, text, SCALED),
    "codegen": ("CodeGenForCausalLM", {"n_embd": 1024, "n_layer": 3, "n_head": 16, **FEW}, text, SCALED),
    "dinov2": ("Dinov2ForImageClassification", {}, image),
    "levit": ("LevitForImageClassification", {}, image),
    "poolformer": ("PoolFormerForImageClassification", {}, image),
    "cvt": ("CvtForImageClassification", {}, image),
    "pvt": ("PvtForImageClassification", {}, image),
    "bit": ("BitForImageClassification", {}, image),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", {}, image),
    "upernet": ("UperNetForSemanticSegmentation", {}, lambda: image(256)),
    "vit_mae": ("ViTMAEModel", {}, image),
    "rt_detr": ("RTDetrForObjectDetection", {}, lambda: image(320), "images of 320"),
    "mask2former": ("Mask2FormerForUniversalSegmentation", {}, lambda: image(256)),
    "vits": ("VitsModel", {}, lambda: text(32)),
    "encodec": ("EncodecModel", {}, lambda: {"input_values": torch.randn(1, 1, 24000)}),
    "wav2vec2_conformer": ("Wav2Vec2ConformerForCTC", {"num_hidden_layers": 4, "vocab_size": 32}, wave, "4 layers"),
    "audio_spectrogram_transformer": ("ASTForAudioClassification", {}, lambda: {
        "input_values": torch.randn(1, 1024, 128)}),
    "data2vec": ("Data2VecAudioForCTC", {"num_hidden_layers": 6}, wave, "6 layers"),
    "swin2sr": ("Swin2SRForImageSuperResolution", {}, lambda: image(64)),
    "sam_vision": ("SamVisionModel", {}, lambda: image(1024)),
    "videomae": ("VideoMAEForVideoClassification", {}, lambda: {"pixel_values": torch.randn(1, 16, 3, 224, 224)}),
    "vivit": ("VivitForVideoClassification", {"num_frames": 8, "num_hidden_layers": 4}, lambda: {
        "pixel_values": torch.randn(1, 8, 3, 224, 224)}, "4 layers, 8 frames"),
    "decision_transformer": ("DecisionTransformerModel", {}, lambda: {
        "states": torch.randn(1, 20, 17), "actions": torch.randn(1, 20, 4), "rewards": torch.randn(1, 20, 1),
        "returns_to_go": torch.randn(1, 20, 1), "timesteps": torch.arange(20)[None],
        "attention_mask": torch.ones(1, 20)}),
    "informer": ("InformerModel", {
        "prediction_length": 24, "context_length": 48, "num_time_features": 2, "d_model": 64}, series),
    "timesformer": ("TimesformerForVideoClassification", {"num_hidden_layers": 6}, lambda: {
        "pixel_values": torch.randn(1, 8, 3, 224, 224)}, "6 layers"),
    "vilt": ("ViltModel", {}, lambda: caption(224, 40)),
    "mixtral": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 4}, text, SCALED + ", 4 experts"),
}  # fmt: skip


def transformer(name: str) -> tuple[nn.Module, Inputs]:
    kind, changes, inputs = TRANSFORMERS[name][:3]
    cls = getattr(transformers, kind)
    config = cls.config_class(**changes)
    config.use_cache = False
    return cls(config), inputs()

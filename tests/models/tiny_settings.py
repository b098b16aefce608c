"""The smallest settings of each transformers family that leave every kind of convolution in it."""

from __future__ import annotations

WAVE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "initializer_range": 0.2,
}
ADAPTER = {"add_adapter": True, "num_adapter_layers": 1}
WHISPER = {
    "vocab_size": 50,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 10,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "init_std": 0.2,
}
SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
MOONSHINE = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 16,
    "encoder_num_hidden_layers": 1,
    "decoder_num_hidden_layers": 1,
    "encoder_num_attention_heads": 2,
    "decoder_num_attention_heads": 2,
    "initializer_range": 0.2,
    "decoder_start_token_id": 1,
}
MOONSHINE_STREAMING = {
    "encoder_config": (
        "MoonshineStreamingEncoderConfig",
        SMALL | {"hidden_size": 16, "num_hidden_layers": 1, "sliding_windows": ((4, 2),), "head_dim": 8},
    ),
    **SMALL,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "vocab_size": 20,
    "decoder_start_token_id": 1,
}
VOXTRAL_ENCODER = SMALL | {"num_hidden_layers": 1, "num_mel_bins": 8, "head_dim": 4, "sliding_window": 8}
PARAKEET_ENCODER = SMALL | {
    "num_hidden_layers": 1,
    "subsampling_conv_channels": 8,
    "num_mel_bins": 16,
    "initializer_range": 0.3,
}
CODEC = {"num_filters": 4, "hidden_size": 8, "codebook_size": 8, "num_residual_layers": 1}
ENCODEC = CODEC | {"upsampling_ratios": (2, 2), "num_lstm_layers": 1, "codebook_dim": 8}
DAC = {
    "encoder_hidden_size": 4,
    "downsampling_ratios": (2,),
    "decoder_hidden_size": 8,
    "n_codebooks": 1,
    "codebook_size": 8,
    "codebook_dim": 4,
}
MIMI = CODEC | {
    "upsampling_ratios": [4, 2],
    "vector_quantization_hidden_dimension": 4,
    "codebook_dim": 4,
    "num_quantizers": 2,
    "upsample_groups": 8,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
VITS = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "ffn_dim": 8,
    "flow_size": 8,
    "spectrogram_bins": 9,
    "upsample_initial_channel": 16,
    "upsample_rates": (2, 2),
    "upsample_kernel_sizes": (4, 4),
    "resblock_kernel_sizes": (3,),
    "resblock_dilation_sizes": ((1, 3),),
    "depth_separable_num_layers": 1,
    "duration_predictor_num_flows": 2,
    "duration_predictor_filter_channels": 8,
    "prior_encoder_num_flows": 1,
    "prior_encoder_num_wavenet_layers": 2,
    "posterior_encoder_num_wavenet_layers": 2,
}
HIFI_GAN = {
    "model_in_dim": 8,
    "upsample_initial_channel": 16,
    "upsample_rates": (2, 2),
    "upsample_kernel_sizes": (4, 4),
    "resblock_kernel_sizes": (3,),
    "resblock_dilation_sizes": ((1, 3),),
    "initializer_range": 0.2,
}
UNIVNET = {
    "model_in_channels": 4,
    "model_hidden_channels": 4,
    "num_mel_bins": 4,
    "resblock_kernel_sizes": (3,),
    "resblock_stride_sizes": (2,),
    "resblock_dilation_sizes": ((1, 3),),
    "kernel_predictor_num_blocks": 1,
    "kernel_predictor_hidden_channels": 4,
    "initializer_range": 0.2,
}
FASTSPEECH = {
    "hidden_size": 8,
    "vocab_size": 20,
    "num_mel_bins": 4,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_linear_units": 8,
    "decoder_linear_units": 8,
    "speech_decoder_postnet_layers": 2,
    "speech_decoder_postnet_units": 4,
    "duration_predictor_channels": 4,
    "energy_predictor_channels": 4,
    "pitch_predictor_layers": 2,
    "pitch_predictor_channels": 4,
    "encoder_kernel_size": 3,
    "decoder_kernel_size": 3,
    "max_source_positions": 50,
}
PAST, HORIZON, LAGS = 8, 4, [1, 2]
SERIES = {
    "prediction_length": HORIZON,
    "context_length": PAST,
    "lags_sequence": LAGS,
    "num_time_features": 1,
    "d_model": 8,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "decoder_layers": 1,
    "init_std": 0.2,
}
AUTOFORMER = SERIES | {"moving_average": 3, "label_length": 4}

LFM2 = SMALL | {
    "num_hidden_layers": 2,
    "vocab_size": 20,
    "layer_types": ["conv", "full_attention"],
    "initializer_range": 0.3,
}

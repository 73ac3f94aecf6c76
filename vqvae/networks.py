"""The networks by name: an encoder and a decoder each.

Encoder(config, n_out)             mapped pixels (B, 3, H, W) -> z_e (B, n_out, H / f, W / f)
    features(x), output_conv       the same in two parts, the last of which is a 1x1 convolution
Decoder(config, n_in, n_maps)      z_q (B, n_in, h, w) -> maps (B, n_maps, h f, w f)
    input_conv, after_input(x)     the same in two parts, the first of which is a 1x1 convolution, for one-hot codes
                                   the embedding
    output_conv                    its last layer, a convolution
"""

from typing import NamedTuple

import torch.nn as nn

from vqvae.conv_decoder import ConvDecoder
from vqvae.conv_encoder import ConvEncoder
from vqvae.decoder import Decoder
from vqvae.encoder import Encoder


class Network(NamedTuple):
    encoder: type[nn.Module]
    decoder: type[nn.Module]


NETWORKS: dict[str, Network] = {"dalle": Network(Encoder, Decoder), "conv": Network(ConvEncoder, ConvDecoder)}

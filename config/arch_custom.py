"""A template: every key of the architecture at its default. Copy this file and edit it.

`python model_components.py` lists the available components, `python train.py --help` lists all
keys. Keys of components that are not selected here are comments, because setting them is an error
if no layer uses the component. Most keys also take a per-layer pattern: "a*3+b" repeats over the
layers, "a+b*" uses b for all remaining layers.
"""

arch_preset = "custom"

# Sizes
n_layer = 12  # blocks
n_head = 12  # attention heads
n_embd = 768  # width of the residual stream
block_size = 1024  # longest sequence
sequence_length = 256  # training sequence length; remove it to use block_size
# vocab_size is taken from the dataset; set it only to make it larger

# Normalization
# layernorm | layernorm_nobias | layernorm_unit_offset | layernorm_nogain | rmsnorm |
# rmsnorm_unit_offset | rmsnorm_nogain | dyt | derf | none
normalization = "layernorm"
norm_position = "pre"  # pre | post | res_post | sandwich | parallel | parallel_shared
norm_eps = 1e-5
layer_norm_scaling = False  # divide the norms of layer l = 1, 2, ... by sqrt(l)
# normalization = "dyt":
# norm_alpha = 0.5  # initial scale inside dyt and derf

# Feed-forward network
# standard | glu | swiglu | geglu | reglu | moe | none; "swiglu+moe*": per layer
ffn_type = "standard"
# gelu | gelu_tanh | quick_gelu | silu | relu | relu2 | leaky_relu | xielu; None: ffn_type's own
activation = "gelu"
ffn_multiplier = None  # hidden width / n_embd; None: 4, or 8/3 if gated
ffn_multiple_of = 1  # round the hidden width up to a multiple
ffn_hidden = None  # hidden width; None: from ffn_multiplier
hidden_gain = False  # scale hidden units by sqrt(n_embd) and a learned vector, as in nGPT
# activation = "leaky_relu":
# leaky_relu_slope = 0.01
# ffn_type = "swiglu":
# glu_limit = None  # clamp the gate and the other factor, e.g. 7.0
# glu_shift = 0.0  # added to the factor that is not the gate
# glu_gate_scale = 1.0  # scale of the gate
# glu_out_scale = 1.0  # scale of the output
# ffn_type = "moe":
# n_experts = 8  # each of width ffn_hidden
# n_experts_per_token = 2
# n_shared_experts = 0  # used by every token
# shared_expert_gate = False  # multiply the shared experts by a sigmoid per token
# router_score = "softmax"  # softmax | sigmoid
# router_renormalize = None  # normalize the weights of a token's experts; None: if several
# router_scale = 1.0  # scale of these weights
# n_expert_groups = 1
# n_groups_per_token = None  # expert groups per token; None: all
# expert_group_score = "top2"  # top2 | max: the sum of a group's two highest scores, or the highest
# router_logit_bias = False  # a learned bias of the router logits
# router_bias_rate = 0.0  # e.g. 0.001: load balancing by biases that affect selection only
# balance_loss_coef = 0.01
# router_z_loss_coef = 0.0

# Mixer
# attention | mla | linear_attention | retnet | gla | deltanet | gated_deltanet | kda | mamba2 |
# attention_mamba2 | rwkv7 | short_conv | none; "kda*3+attention": per layer
mixer = "attention"
# mixer = "mla":
# q_lora_rank = None  # latent of the queries; None: queries from the input itself
# kv_lora_rank = None  # latent of keys and values; None: 4 * qk_nope_head_dim
# qk_nope_head_dim = None  # part of queries and keys that is not rotated; None: n_embd / n_head
# qk_rope_head_dim = None  # rotated part, shared by all heads; None: half of qk_nope_head_dim
# v_head_dim = None  # None: qk_nope_head_dim
# mixer = "linear_attention", "retnet", "gla", "deltanet", "gated_deltanet" or "kda":
# linear_n_head = None  # query and key heads; None: n_embd / 64, 128 or 256
# linear_n_value_head = None  # None: linear_n_head
# linear_key_dim = None  # None: n_embd / linear_n_head, half of it in gla
# linear_value_dim = None  # None: linear_key_dim, twice that in gla and retnet
# linear_kernel = None  # kernel size of the convolution; 0: none; None: 4 for delta rules, else 0
# linear_chunk = 64  # chunk size in tokens; does not change the result
# mixer = "linear_attention":
# linear_feature_map = "elu"  # elu | relu
# mixer = "retnet":
# retnet_theta = 10000.0  # base of the rotation frequencies
# mixer = "gla":
# gla_rank = 16  # dimensions that the decays are projected through
# gla_temperature = 16.0  # the decays are sigmoids to the power of 1 / gla_temperature
# mixer = "kda":
# kda_rank = None  # rank of decays and output gate; None: linear_value_dim
# mixer = "attention_mamba2":  (also the keys of attention and mamba2)
# attention_in_scale = 1.0
# attention_out_scale = 1.0
# mamba_in_scale = 1.0
# mamba_out_scale = 1.0
# mamba_z_scale = 1.0
# mamba_x_scale = 1.0
# mamba_b_scale = 1.0
# mamba_c_scale = 1.0
# mamba_dt_scale = 1.0
# mixer = "mamba2":
# mamba_expand = None  # width of all heads / n_embd; None: 2
# mamba_n_head = None  # None: mamba_expand * n_embd / mamba_head_dim
# mamba_head_dim = 64
# mamba_state_dim = 128  # dimension of B and C
# mamba_n_group = 1  # groups of heads that share B and C
# mamba_kernel = 4  # kernel size of the convolution
# mamba_conv_bias = True
# mamba_norm = "after_gate"  # after_gate | before_gate | none
# mamba_dt_min = 0.0  # limits of the step size
# mamba_dt_max = None  # None: no limit
# mamba_chunk = 64  # chunk size in tokens; does not change the result
# mixer = "rwkv7":
# rwkv_head_dim = 64
# rwkv_decay_rank = None  # rank of the decays; None: about 2.5 * sqrt(n_embd)
# rwkv_rate_rank = None  # rank of the learning rates; None: about 2.5 * sqrt(n_embd)
# rwkv_value_rank = None  # rank of the first layer's shares; None: about 1.7 * sqrt(n_embd)
# rwkv_gate_rank = None  # rank of the output gate; None: about 5 * sqrt(n_embd)
# rwkv_chunk = 64  # chunk size in tokens; does not change the result
# mixer = "short_conv":
# short_conv_kernel = 3

# Attention
n_kv_head = None  # key and value heads; None: n_head; 1: multi-query
head_dim = None  # None: n_embd / n_head
qk_norm = False  # normalize queries and keys
qk_norm_type = "rmsnorm"  # rmsnorm | layernorm
qk_norm_over = "head"  # head | projection
qk_norm_after_rope = False  # normalize the rotated queries and keys
qk_sphere = False  # queries and keys of length 1 times a learned vector, as in nGPT
attention_scale = None  # of query-key products; None: 1 / sqrt(head_dim), 1 / head_dim in muP
sliding_window = (
    None  # tokens a query attends to; None: all; "128*5+none": all in every sixth layer
)
attention_softcap = None  # e.g. 50.0
attention_bias = None  # None: same as bias
attention_out_bias = None  # None: same as attention_bias
value_residual = "none"  # none | fixed | learned: mix in the values of the first layer
kv_sharing = False  # "false+true": every second layer uses the keys and values of the one before
value_embedding = "none"  # none | mixed | gated: an embedding of the token in the values
attention_sinks = False  # a learned logit per head in the denominator of the softmax
exclusive_attention = "none"  # none | full | learned: remove the token's own value from the output
# none | ssmax | llama4 | ministral3: scale queries by the log of the number of keys
query_scaling = "none"
query_scaling_interval = 8192  # for llama4 and ministral3
query_scaling_factor = 0.1  # for llama4 and ministral3
forget_gate = False  # scores decay by a sigmoid gate per token and head
differential_attention = False  # subtract the attention map of the second half of the heads
attention_gate = "none"  # none | channel | head: sigmoid gate on the attention output
attention_backend = "auto"  # manual | sdpa | flash | flex | auto

# Inputs of mixer and FFN
token_shift = "none"  # none | mixer | ffn | both: mix with the previous token, per channel

# Embeddings in the layers
engram = False  # "false+true+false*": embeddings of hashed n-grams in layer 1
engram_order = 3  # n-grams of 2 to 3 tokens
engram_heads = 8  # hash tables for each length
engram_table_size = None  # minimum number of rows of a table; None: vocab_size
engram_width = None  # width of an n-gram embedding, all tables together; None: n_embd
engram_kernel = 4  # kernel size of the convolution of the added vectors
per_layer_embedding = None  # width of a token embedding in each layer, as in Gemma 3n
per_layer_vocab_size = None  # tokens with their own one; None: vocab_size

# Canon layers
# none | a | b | c | d | ab | ... | abcd: short convolutions of a: the input of the mixer,
# b: queries, keys and values, c: the input of the FFN, d: its hidden units
canon = "none"
canon_kernel = 4

# Positions
position_encoding = (
    "learned"  # learned | sinusoidal | rope | alibi | fire | cope | path | none; "rope*3+none"
)
# position_encoding = "rope":
# rope_theta = 10000.0
# rope_fraction = 1.0  # fraction of each head that is rotated
# rope_scaling = "none"  # none | linear | ntk | yarn | llama3
# rope_scaling = "linear", "ntk", "yarn" or "llama3":
# rope_scaling_factor = 1.0  # set it above 1
# rope_scaling = "yarn" or "llama3":
# rope_original_block_size = 1024
# rope_scaling = "yarn":
# rope_beta_fast = 32.0
# rope_beta_slow = 1.0
# rope_attention_factor = None  # scale of rotated queries and keys; None: 0.1 ln(factor) + 1
# rope_truncate = True  # round the bounds of the interpolated dimensions to whole pairs
# rope_scaling = "llama3":
# rope_low_freq_factor = 1.0
# rope_high_freq_factor = 4.0
# position_encoding = "path":
# path_rank = 32  # rank of the projection to its vectors; 0: full rank
# path_kernel = 3  # kernel size of the convolution of its vectors; 0: none
# path_chunk = 64  # does not change the result
# position_encoding = "cope":
# cope_max_positions = 64
# position_encoding = "fire":
# fire_width = 32  # hidden units of the network from distances to biases
# fire_scale = 0.1  # initial c of psi(x) = log(c x + 1)
# fire_threshold = 512.0  # initial L: distances are relative to max(L, position of the query)

# Residual stream
residual = "plain"  # plain | unet | hyper_connections | mhc | ngpt | attention
residual_scale = None  # scale of what sublayers add; None: 1, or that of parametrization
# residual = "hyper_connections" or "mhc":
# hyper_streams = 4
# residual = "hyper_connections":
# hyper_dynamic = True  # mixing weights depend on the token
# residual = "mhc":
# mhc_steps = 20  # Sinkhorn-Knopp steps
# residual = "ngpt" (with normalization = "none"):
# ngpt_rate = 0.05  # first step towards the output of a sublayer
# residual = "attention" (not with norm_position = "post"):
# attn_res_block = None  # layers per block, whose outputs are summed; None: attend to every output

# Multi-token prediction
# none | sequential | parallel: modules that predict tokens after the next one during training
mtp = "none"
# mtp = "sequential" or "parallel":
# mtp_depth = 1  # number of tokens after the next one
# mtp_weight = 0.3  # weight of their mean loss

# Width and depth
parametrization = "standard"  # standard | mup | completep: initial weights, scales, learning rates
# parametrization = "mup" or "completep":
# mup_base_width = 256  # n_embd at which learning_rate was tuned
# parametrization = "completep":
# completep_base_depth = 2  # n_layer at which learning_rate was tuned
loop_count = 1  # how often the looped layers are applied
loop_prelude = 0  # with loop_count > 1: layers before the looped ones
loop_coda = 0  # with loop_count > 1: layers after the looped ones

# Whole model
bias = True  # in the Linear layers
head_bias = False  # in the LM head
weight_tying = True  # share the weights of the token embedding and the LM head
dropout = 0.0
output_softcap = None  # e.g. 30.0
embedding_scale = 1.0
logit_scale = None  # scale of the logits; None: 1, or that of parametrization
logit_gain = False  # a learned scale for the logit of each token, as in nGPT
sphere_weights = False  # weights of length 1 along the residual stream, as in nGPT
embedding_norm = False  # normalize the embeddings before the first block
init_std = 0.02
zero_init = False  # start the projections that add to the residual stream at 0

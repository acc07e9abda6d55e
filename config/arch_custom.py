"""Every key of the architecture, at its default: copy this file and edit.

`python model_components.py` lists the names that a key may take, `python train.py --help` all keys.
Keys of parts that are not chosen here are comments: such a key is refused where no layer has its
part. Most keys also take a pattern over the layers: "a*3+b" repeats, in "a+b*" the rest is b.
"""

arch_preset = "custom"

# Sizes
n_layer = 12  # blocks
n_head = 12  # attention heads
n_embd = 768  # width of the residual stream
block_size = 1024  # longest sequence
sequence_length = 256  # what a run trains on, of block_size; remove it to train on all
# vocab_size is the data's; set it only to make room for more

# Normalization
normalization = "layernorm"  # layernorm | layernorm_nobias | rmsnorm | rmsnorm_unit_offset | none
norm_position = "pre"  # pre | post | res_post | sandwich | parallel | parallel_shared
norm_eps = 1e-5

# Feed-forward network
ffn_type = "standard"  # standard | glu | swiglu | geglu | reglu | moe; "swiglu+moe*": by layer
activation = "gelu"  # gelu | gelu_tanh | silu | relu | relu2 | leaky_relu; None: ffn_type's own
ffn_multiplier = None  # hidden width over n_embd; None: 4, gated 8/3
ffn_multiple_of = 1  # round the hidden width up to a multiple
ffn_hidden = None  # the hidden width itself; None: by ffn_multiplier
# activation = "leaky_relu":
# leaky_relu_slope = 0.01
# ffn_type = "moe":
# n_experts = 8  # each of width ffn_hidden
# n_experts_per_token = 2
# n_shared_experts = 0  # that all tokens use
# shared_expert_gate = False  # a sigmoid per token on the shared experts
# router_score = "softmax"  # softmax | sigmoid
# router_renormalize = None  # weights of a token's experts sum to 1; None: if there are several
# router_scale = 1.0  # factor on these weights
# n_expert_groups = 1
# n_groups_per_token = None  # groups that a token's experts are from; None: all
# router_bias_rate = 0.0  # e.g. 0.001: balance the load by biases that choose, and do not weigh
# balance_loss_coef = 0.01
# router_z_loss_coef = 0.0

# Mixer
mixer = (
    "attention"  # attention | gated_deltanet | short_conv; "gated_deltanet*3+attention": by layer
)
# mixer = "gated_deltanet":
# gdn_n_head = None  # query and key heads; None: n_embd / 64
# gdn_n_value_head = None  # None: gdn_n_head
# gdn_key_dim = None  # None: n_embd / gdn_n_head
# gdn_value_dim = None  # None: gdn_key_dim
# gdn_kernel = 4  # positions that the convolution covers
# gdn_chunk = 64  # tokens that are computed at a time; changes no result
# mixer = "short_conv":
# short_conv_kernel = 3

# Attention
n_kv_head = None  # heads of keys and values; None: n_head; 1: multi-query
head_dim = None  # None: n_embd / n_head
qk_norm = False  # RMSNorm on queries and keys
qk_norm_over = "head"  # head | projection
attention_scale = None  # factor on query-key products; None: 1 / sqrt(head_dim)
sliding_window = None  # tokens that a query sees; None: all; "128*5+none": all in each sixth layer
attention_softcap = None  # e.g. 50.0
attention_bias = None  # None: as bias
attention_out_bias = None  # None: as attention_bias
value_residual = "none"  # none | fixed | learned: mix in the values of the first layer
attention_backend = "auto"  # manual | sdpa | flash | flex | auto

# Positions
position_encoding = "learned"  # learned | sinusoidal | rope | alibi | none; "rope*3+none": by layer
# position_encoding = "rope":
# rope_theta = 10000.0
# rope_fraction = 1.0  # share of each head that is rotated
# rope_scaling = "none"  # none | linear | ntk | yarn | llama3
# rope_scaling = "linear", "ntk", "yarn" or "llama3":
# rope_scaling_factor = 1.0  # set it above 1
# rope_scaling = "yarn" or "llama3":
# rope_original_block_size = 1024
# rope_scaling = "yarn":
# rope_beta_fast = 32.0
# rope_beta_slow = 1.0
# rope_scaling = "llama3":
# rope_low_freq_factor = 1.0
# rope_high_freq_factor = 4.0

# Residual stream
residual = "plain"  # plain | unet | hyper_connections
# residual = "hyper_connections":
# hyper_streams = 4
# hyper_dynamic = True  # mixtures depend on the token

# Whole model
bias = True  # in the Linear layers
head_bias = False  # in the LM head
weight_tying = True  # the LM head shares the token embedding
dropout = 0.0
output_softcap = None  # e.g. 30.0
embedding_scale = 1.0
init_std = 0.02

/* The CPU kernels' C interface: raw pointers and sizes, no torch, no state.
 *
 * The caller owns all memory. Maps are channels last. "Element" is float where an instruction set computes in float32,
 * and the 16 bits of a bfloat16 where it computes in bfloat16 with float32 accumulation.
 */
#ifndef STIF_RT_CPU_H
#define STIF_RT_CPU_H

#include <stdint.h>

#define STIF_RT_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

#define STIF_RT_CHANNELS 64 /* of every feature map, and of every first layer */
#define STIF_RT_WIDEST 256  /* outputs of the widest layer */
#define STIF_RT_LAYERS 5    /* most layers of one network, after its first */

/* Instruction sets, by preference. An index into them is called isa below. */
STIF_RT_API int32_t stif_rt_isa_count(void);
STIF_RT_API const char *stif_rt_isa_name(int32_t isa);
STIF_RT_API int32_t stif_rt_isa_bfloat16(int32_t isa);        /* whether elements are bfloat16 */
STIF_RT_API const char *stif_rt_isa_unavailable(int32_t isa); /* why it cannot run here; NULL where it can */

/* y = W x + b with the weights packed for one instruction set. */
typedef struct {
    const void *packed; /* from stif_rt_pack; NULL where the layer is missing */
    int32_t inputs;
    int32_t outputs;
} stif_rt_linear;

/* Bytes that stif_rt_pack writes. inputs: at most 65536. */
STIF_RT_API int64_t stif_rt_packed_bytes(int32_t isa, int32_t inputs, int32_t outputs);
/* weight: [outputs, inputs]. bias: [outputs], or NULL for zeros. packed: 64-byte aligned. */
STIF_RT_API void stif_rt_pack(int32_t isa, const float *weight, const float *bias, int32_t inputs, int32_t outputs,
                              void *packed);

/* A SIREN whose pre-activations are in turns: y = last(sin 2 pi (... sin 2 pi (first))). */
typedef struct {
    stif_rt_linear local;                  /* first-layer columns for what is made per pixel; 64 outputs, no bias */
    stif_rt_linear hidden[STIF_RT_LAYERS]; /* the sine layers after the first, then the last, linear layer */
    int32_t hidden_count;                  /* 0 for a network that is constant, whose outputs start gives instead */
    const float *start;                    /* [64]: first layer's bias + time column * t */
} stif_rt_siren;

/* One axis of the picture; tables run over the output's pixels. The encoder's maps have one cell for every `stride`
 * pixels of the frames. */
typedef struct {
    int64_t inputs, outputs;      /* n, N: pixels of the frames and of the picture */
    int64_t cell_count;           /* of the maps: n / stride, rounded up */
    const int64_t *nearest_index; /* [N] the nearest cell */
    const float *cell_offset;     /* [N] distance from its centre */
    const float *source_coords;   /* [N] where the pixel lies, in cells */
    float origin, step;           /* base grid of the warp, normalised: origin + step * (pixel + flow) */
    float flow_unit;              /* what the network counts flow in, in output pixels */
    float extent;                 /* cells from edge to edge of the frames: n / stride */
    float stride;                 /* pixels of the frames in a cell */
    float scale;                  /* N / n */
} stif_rt_axis;

typedef struct {
    int64_t top, left, height, width;
} stif_rt_box;

/* Pass 1: F = SIF(nearest(nearest_map), relative position), flow = TIF(F, bilinear(bilinear_map)) + the flow that the
 * velocity v implies at time t: (-t V, (1 - t) V) with V = v(x - (t - 1/2) v(x)).
 * The entry network is the one that sees the relative position: SIF, or TIF where the variant has no SIF. Its output is
 * F, which TIF reads where flow is wanted, or the flow where feature is NULL.
 * Without a nearest map the feature is given, or the entry network is constant, and only the flow is computed. A TIF
 * that is constant needs no bilinear map. */
typedef struct {
    stif_rt_axis vertical, horizontal;
    stif_rt_box box;
    const void *nearest_map;     /* Element [h, w, 64] or NULL; h and w are the axes' cell_count */
    const void *bilinear_map;    /* Element [h, w, 64] or NULL */
    const float *velocity;       /* [h, w, 2], x first, in pixels of the frames; or NULL */
    const float *offset_weights; /* [2, 64]: first-layer columns for the offset from the cell, vertical first */
    float time;                  /* t */
    stif_rt_siren entry, tif;
    void *feature; /* Element [box, 64] or NULL */
    float *flow;   /* [box, 4] or NULL: x0, y0, x1, y1 in output pixels */
} stif_rt_implicit;

/* Pass 2: rgb = decoder(F(p0), F(p1), maps[0](p0), maps[1](p1)) + w frame0(p0) + (1 - w) frame1(p1), at the positions
 * that the flow points to. w = 1 - t; or, with m the decoder's fourth output, (1 - t) e^m / ((1 - t) e^m + t e^-m). */
typedef struct {
    stif_rt_axis vertical, horizontal;
    stif_rt_box region;  /* what is decoded */
    stif_rt_box box;     /* what feature covers */
    const void *feature; /* Element [box, 64] or NULL */
    const float *flow;   /* [region, 4] or NULL for none */
    const void *maps[2]; /* Element [h, w, 64] or NULL; h and w are the axes' cell_count */
    const float *frames; /* [2, inputs, inputs, 3] or NULL for no residual */
    int32_t bicubic;     /* whether frames are read by cubic convolution; else bilinearly */
    int32_t blend;       /* whether the decoder's fourth output weights the frames; else the time alone does */
    float time;          /* t */
    stif_rt_siren decoder;
    float *rgb;      /* [3, region], not clamped; or NULL */
    uint8_t *pixels; /* [region, 3], clamped to [0, 1] and rounded to 255 steps; or NULL */
} stif_rt_decode;

/* Modulated deformable 3x3 convolution of one channels-last image; see stif_rt/ops/deform_conv/reference.py. */
typedef struct {
    int64_t height, width;
    int32_t groups;
    const void *x;      /* Element, pixels x_stride elements apart; channels = convolution.inputs / 9 */
    const void *offset; /* Element [groups * 9 * 2] a pixel */
    const void *mask;   /* Element [groups * 9] a pixel */
    int64_t x_stride, offset_stride, mask_stride, out_stride;
    stif_rt_linear convolution; /* inputs ordered (tap, channel) */
    void *out;                  /* Element [outputs] a pixel */
} stif_rt_deform_conv;

/* What follows is the velocity head's; see stif_rt/ops/matching/reference.py. Maps are channels last, [height, width],
 * cells `.._stride` elements apart, and float where nothing else is said; flows and what is like them are planes,
 * [2, height, width], x first, in cells. */

/* A map read bilinearly at every cell moved by a flow, the border repeated. */
typedef struct {
    int64_t height, width, channels; /* at most STIF_RT_WIDEST channels */
    int64_t maps_stride;
    const void *maps;  /* Element */
    const float *flow; /* [2, height, width] */
    void *out;         /* Element [height, width, channels] */
} stif_rt_warp;

/* A map whose negative values are multiplied by their channel's slope, in place. */
typedef struct {
    int64_t cells, channels; /* at most STIF_RT_WIDEST channels */
    void *x;                 /* Element [cells, channels] */
    const float *slopes;     /* [channels] */
} stif_rt_prelu;

/* Both frames' maps less their mean over both frames and 17 x 17 cells around, over their deviation there. */
typedef struct {
    int64_t height, width, channels;
    int64_t maps_stride;
    int64_t out_stride; /* a multiple of 16; what is beyond the channels is set to 0 */
    const float *maps[2];
    float *out[2];
    float smallest_variance;
} stif_rt_normalise;

/* One step of Gauss-Newton. */
typedef struct {
    int64_t height, width, channels; /* at most 32 channels, which are matched */
    int64_t maps_stride;             /* at least the channels rounded up to a multiple of 16 */
    const float *maps[2];
    const float *gain; /* [32]: of each channel, 0 beyond them */
    float damping, tolerance, largest_step;
    float *sums;     /* [6, height, width], to work with */
    float *velocity; /* [2, height, width], read and written */
    float *step;     /* [2, height, width] */
    float *matrix;   /* [3, height, width]: xx, xy, yy */
} stif_rt_gauss_newton;

/* What a level's network sees: of both frames as they are midway the channels after those that are matched, the step
 * (2), the matrix (3), the mean difference of those matched, the velocity / 4 (2), the context. */
typedef struct {
    int64_t height, width, match, seen, context; /* 2 seen + 8 + context and match + seen: at most STIF_RT_WIDEST */
    int64_t maps_stride;
    const float *maps[2]; /* [height, width, match + seen] */
    const float *velocity, *step, *matrix;
    const float *given; /* the context, [height, width, context] */
    void *out;          /* Element [height, width, 2 seen + 8 + context] */
} stif_rt_evidence;

/* The velocities 3x3 neighbours one and three cells away, and the one before, mixed by their scores' softmax. */
typedef struct {
    int64_t height, width;
    int64_t scores_stride;
    const void *scores;      /* Element [height, width, 2 + 19]: what is added at the end, x first, then the scores */
    const float *preference; /* [19], added to the scores */
    const float *velocity, *start;
    float *out; /* [2, height, width] */
} stif_rt_choose;

/* Sizes in bytes of the structures above from stif_rt_implicit on, in that order: the ABI check of a caller, which
 * must not go on where its own differ. */
STIF_RT_API void stif_rt_sizes(int64_t sizes[9]);

/* Each returns 0, or 1 where memory or threads cannot be had. threads: at most so many, the caller's included. */
STIF_RT_API int32_t stif_rt_run_implicit(int32_t isa, const stif_rt_implicit *arguments, int32_t threads);
STIF_RT_API int32_t stif_rt_run_decode(int32_t isa, const stif_rt_decode *arguments, int32_t threads);
STIF_RT_API int32_t stif_rt_run_deform_conv(int32_t isa, const stif_rt_deform_conv *arguments, int32_t threads);
STIF_RT_API int32_t stif_rt_run_warp(int32_t isa, const stif_rt_warp *arguments, int32_t threads);
STIF_RT_API int32_t stif_rt_run_prelu(int32_t isa, const stif_rt_prelu *arguments, int32_t threads);
STIF_RT_API int32_t stif_rt_run_normalise(int32_t isa, const stif_rt_normalise *arguments, int32_t threads);
STIF_RT_API int32_t stif_rt_run_gauss_newton(int32_t isa, const stif_rt_gauss_newton *arguments, int32_t threads);
STIF_RT_API int32_t stif_rt_run_evidence(int32_t isa, const stif_rt_evidence *arguments, int32_t threads);
STIF_RT_API int32_t stif_rt_run_choose(int32_t isa, const stif_rt_choose *arguments, int32_t threads);

/* y = sin(2 pi x), as the kernels compute it. */
STIF_RT_API void stif_rt_run_sine(int32_t isa, const float *x, float *y, int64_t count);

#ifdef __cplusplus
}
#endif
#endif

/* Convolution 3x3 with padding, ReLU and average pooling 2x2 as one function, and its gradients. float32, channels
   last.

   Winograd's F(2x2, 3x3), as in Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016: a tile
   of 4x4 entries of the input (overlapping its neighbours by two) and the filter are both transformed into 16 numbers;
   their products, summed over the input channels, are transformed back into 2x2 entries of the output. That is 16
   multiplications where the sum itself takes 36, and the 2x2 entries are a window of the pooling: the maps between
   convolution and pooling never reach memory. For backward, 4 bits for every pooled entry tell where ReLU let through.

   With few input channels, as in images, there is nothing to gain from transforms: the sum is taken directly.

   Every function returns 0, or 1 where memory is short. What it writes does not depend on the number of threads, but
   for gradients of weights and biases, whose sums are taken thread by thread. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 12 };
#elif defined(__AVX__)
enum { LANES = 8, ROWS = 6 };
#else
enum { LANES = 4, ROWS = 6 };
#endif
enum {
    WIDE = 2 * LANES, /* channels that are computed at a time: with ROWS, as many sums as there are registers for */
    TILES = 8 * ROWS, /* that pass together, at most */
    CACHED = 1 << 16, /* floats of transformed tiles that do: half of a core's own cache */
    FEW = 4,          /* input channels that are summed directly */
};

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

/* Of a convolution: images, height and width of its input, input and output channels. */
typedef struct {
    long count, height, width, in, out, padding, threads;
} Shape;

static vec load(const float *from) { return *(const vec *)from; }
static void store(float *to, vec value) { *(vec *)to = value; }
static long least(long a, long b) { return a < b ? a : b; }
static long up(long number, long to) { return (number + to - 1) / to * to; }
static float *allocate(long floats) { return aligned_alloc(64, up(floats * 4, 64)); }

/* As many of the LANES entries as there is room for. */
static void store_some(float *to, vec value, long room) {
    if (room >= LANES)
        store(to, value);
    else
        memcpy(to, &value, room * 4);
}

/* m (ROWS, WIDE) = v (ROWS, k) times u (k, WIDE). */
static __attribute__((noinline)) void multiply(const float *restrict v, long k, const float *restrict u,
                                               float *restrict m) {
    vec sum[ROWS][2] = {0};
    for (long c = 0; c < k; c++, u += WIDE) {
        vec left = load(u), right = load(u + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            sum[r][0] += v[r * k + c] * left;
            sum[r][1] += v[r * k + c] * right;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
        store(m + r * WIDE, sum[r][0]);
        store(m + r * WIDE + LANES, sum[r][1]);
    }
}

/* m (ROWS, WIDE) += the sum over t < n of v[t step + at[r]] times d (n, WIDE). */
static __attribute__((noinline)) void multiply_add(const float *restrict v, long step, const long *restrict at,
                                                   const float *restrict d, long n, float *restrict m) {
    vec sum[ROWS][2] = {0};
    for (long t = 0; t < n; t++, v += step, d += WIDE) {
        vec left = load(d), right = load(d + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            sum[r][0] += v[at[r]] * left;
            sum[r][1] += v[at[r]] * right;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
        store(m + r * WIDE, load(m + r * WIDE) + sum[r][0]);
        store(m + r * WIDE + LANES, load(m + r * WIDE + LANES) + sum[r][1]);
    }
}

/* m (WIDE) += the sum of d (n, WIDE). */
static void add_rows(const float *d, long n, float *m) {
    vec left = {0}, right = {0};
    for (long t = 0; t < n; t++, d += WIDE) left += load(d), right += load(d + LANES);
    store(m, load(m) + left), store(m + LANES, load(m + LANES) + right);
}

/* One image x with these strides (channel, row, column) -> padded (height + 2 padding, width + 2 padding, k), whose
   border and channels from s.in on are not touched. */
static void fetch(Shape s, const float *x, const long *stride, long k, float *padded) {
    for (long i = 0; i < s.height; i++) {
        const float *from = x + i * stride[1];
        float *to = padded + ((i + s.padding) * (s.width + 2 * s.padding) + s.padding) * k;
        if (stride[0] == 1 && s.in > FEW)
            for (long j = 0; j < s.width; j++) memcpy(to + j * k, from + j * stride[2], s.in * 4);
        else
            for (long c = 0; c < s.in; c++)
                for (long j = 0; j < s.width; j++) to[j * k + c] = from[c * stride[0] + j * stride[2]];
    }
}

/* A gradient after ReLU and pooling and the bits of where ReLU let through -> that of the 2x2 entries before, in LANES
   channels of which there is room for some. */
static void unpool(const float *gradient, const uint8_t *positive, long room, vec y[4]) {
    float some[LANES] = {0};
    bytes narrow = {0};
    memcpy(some, gradient, least(LANES, room) * 4), memcpy(&narrow, positive, least(LANES, room));
    bits quarter = (bits)(load(some) / 4), through = __builtin_convertvector(narrow, bits);
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) y[q] = (vec)(quarter & ((through & 1 << q) != 0));
}

/* The same for some channels of an image (height, width, all) -> twice as high and wide, rows and columns that far
   apart. */
static void unpool_image(const float *gradient, const uint8_t *positive, long all, long channels, long height,
                         long width, float *to, long row, long column) {
    for (long i = 0; i < height; i++)
        for (long j = 0; j < width; j++, gradient += all, positive += all)
            for (long c = 0; c < channels; c += LANES) {
                float *corner = to + 2 * i * row + 2 * j * column + c;
                vec y[4];
                unpool(gradient + c, positive + c, channels - c, y);
                for (int q = 0; q < 4; q++) store_some(corner + q / 2 * row + q % 2 * column, y[q], channels - c);
            }
}

/* weight (out, 3, 3, in) -> u (out / WIDE, 16, k, WIDE); channel c < k of panel p. */
static void transform_weight(Shape s, const float *weight, long k, long p, long c, float *u) {
    float w[3][3][WIDE] = {0}, half[4][3][WIDE];
    if (c < s.in)
        for (long o = 0; o < least(WIDE, s.out - p * WIDE); o++)
            for (int tap = 0; tap < 9; tap++) w[tap / 3][tap % 3][o] = weight[((p * WIDE + o) * 9 + tap) * s.in + c];
    for (int j = 0; j < 3; j++)
        for (int o = 0; o < WIDE; o++) {
            float a = w[0][j][o], b = w[1][j][o], d = w[2][j][o];
            half[0][j][o] = a, half[1][j][o] = (a + b + d) / 2, half[2][j][o] = (a - b + d) / 2, half[3][j][o] = d;
        }
    for (int i = 0; i < 4; i++)
        for (int o = 0; o < WIDE; o++) {
            float a = half[i][0][o], b = half[i][1][o], d = half[i][2][o];
            float *to = u + ((p * 16 + i * 4) * k + c) * WIDE + o;
            to[0] = a, to[k * WIDE] = (a + b + d) / 2, to[2 * k * WIDE] = (a - b + d) / 2, to[3 * k * WIDE] = d;
        }
}

/* The 4x4 entries (k channels) from x on -> v, the 16 numbers `step` apart. */
static void transform_tile(const float *restrict x, long row, long k, float *restrict v, long step) {
    for (long c = 0; c < k; c += LANES) {
        vec half[4][4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const float *from = x + j * k + c;
            vec a = load(from), b = load(from + row), d = load(from + 2 * row), e = load(from + 3 * row);
            half[0][j] = a - d, half[1][j] = b + d, half[2][j] = d - b, half[3][j] = b - e;
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            float *to = v + 4 * i * step + c;
            store(to, half[i][0] - half[i][2]);
            store(to + step, half[i][1] + half[i][2]);
            store(to + 2 * step, half[i][2] - half[i][1]);
            store(to + 3 * step, half[i][1] - half[i][3]);
        }
    }
}

/* The 16 numbers `step` apart -> 2x2 entries of the output. */
static void transform_back(const float *restrict m, long step, vec y[4]) {
    vec half[2][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const float *from = m + j * step;
        vec a = load(from), b = load(from + 4 * step), d = load(from + 8 * step), e = load(from + 12 * step);
        half[0][j] = a + b + d, half[1][j] = b - d - e;
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        y[2 * i] = half[i][0] + half[i][1] + half[i][2];
        y[2 * i + 1] = half[i][1] - half[i][2] - half[i][3];
    }
}

/* ReLU and pooling of 2x2 entries of LANES channels, of which there is room for some; bits of where it let through. */
static void pool(const vec y[4], float *to, uint8_t *positive, long room) {
    vec sum = {0};
    bits through = {0};
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {
        bits over = ~(y[q] <= 0); /* what is not a number gets through */
        sum += (vec)((bits)y[q] & over);
        through |= over & 1 << q;
    }
    store_some(to, sum / 4, room);
    if (positive) {
        bytes narrow = __builtin_convertvector(through, bytes);
        memcpy(positive, &narrow, least(LANES, room));
    }
}

/* Where a convolution takes its input from (maps with strides, or a gradient of pooled ones and its bits) and where it
   leaves its output (pooled, and bits if they are wanted; or the maps themselves). */
typedef struct {
    const float *x, *gradient;
    const long *stride;
    const uint8_t *through;
    const float *bias;
    float *pooled, *maps;
    uint8_t *positive;
} Ends;

/* The products of `filled` tiles from number `done` on, and what becomes of them. */
static void finish(Shape s, Ends ends, long k, const float *u, const float *v, float *m, const uint8_t *empty,
                   long block, long filled, long done) {
    long width = s.width / 2, tiles = s.height / 2 * width;
    for (long first = 0; first < s.out; first += WIDE, u += 16 * k * WIDE) {
        float bias[WIDE] = {0};
        if (ends.bias)
            memcpy(bias, ends.bias + first, least(WIDE, s.out - first) * 4);
        for (int f = 0; f < 16; f++)
            for (long r = 0; r < filled; r += ROWS)
                multiply(v + (f * block + r) * k, k, u + f * k * WIDE, m + (f * block + r) * WIDE);
        for (long r = 0; r < filled; r++)
            for (long o = 0; o < least(WIDE, s.out - first); o += LANES) {
                long tile = done + r, to = tile * s.out + first + o, room = s.out - first - o;
                vec y[4];
                transform_back(m + r * WIDE + o, block * WIDE, y);
                for (int q = 0; empty[r] && q < 4; q++)
                    if (empty[r] >> q & 1)
                        y[q] = (vec){0};
                for (int q = 0; q < 4; q++) y[q] += load(bias + o);
                if (ends.pooled) {
                    pool(y, ends.pooled + to, ends.positive ? ends.positive + to : NULL, room);
                    continue;
                }
                long i = tile % tiles / width * 2, j = tile % width * 2;
                float *maps = ends.maps + ((tile / tiles * s.height + i) * s.width + j) * s.out + first + o;
                for (int q = 0; q < 4; q++) store_some(maps + (q / 2 * s.width + q % 2) * s.out, y[q], room);
            }
    }
}

/* Of n entries of k channels, which have one that is not 0. */
static void look_for_zeros(const float *padded, long k, long n, uint8_t *some) {
    for (long i = 0; i < n; i++, padded += k) {
        bits any = {0};
        for (long c = 0; c < k; c += LANES) any |= load(padded + c) != 0;
        some[i] = 0;
        for (int lane = 0; lane < LANES; lane++) some[i] |= any[lane];
    }
}

/* Which of the 2x2 entries of the output are the sum of nothing but zeros: there, transforms would leave what they
   round off, on either side of where ReLU lets through. */
static uint8_t empty_windows(const uint8_t *some, long row) {
    uint8_t empty = 0;
    for (int q = 0; q < 4; q++) {
        const uint8_t *window = some + q / 2 * row + q % 2;
        int any = 0;
        for (int tap = 0; tap < 9; tap++) any |= window[tap / 3 * row + tap % 3];
        empty |= !any << q;
    }
    return empty;
}

static int winograd(Shape s, const float *weight, Ends ends) {
    long k = up(s.in, LANES), panels = up(s.out, WIDE) / WIDE, row = (s.width + 2) * k, area = (s.height + 2) * row;
    long width = s.width / 2, tiles = s.height / 2 * width;
    long block = least(TILES, CACHED / (16 * k) / ROWS * ROWS + ROWS), own = up(area + 16 * block * (k + WIDE), 16);
    long bytes = (s.height + 2) * (s.width + 2) + block;
    uint8_t *flags = malloc(s.threads * bytes);
    float *u = allocate(panels * 16 * k * WIDE), *scratch = allocate(s.threads * own);
    int failed = !flags || !u || !scratch;
    if (!failed) {
        memset(scratch, 0, s.threads * own * 4);
#pragma omp parallel num_threads(s.threads)
        {
#pragma omp for collapse(2)
            for (long p = 0; p < panels; p++)
                for (long c = 0; c < k; c++) transform_weight(s, weight, k, p, c, u);
#pragma omp for schedule(static, 1)
            for (long part = 0; part < s.threads; part++) {
                float *padded = scratch + part * own, *v = padded + area, *m = v + 16 * block * k;
                uint8_t *some = flags + part * bytes, *empty = some + bytes - block;
                long first = s.count * part / s.threads, last = s.count * (part + 1) / s.threads;
                long filled = 0, done = first * tiles;
                for (long n = first; n < last; n++) {
                    if (ends.x)
                        fetch(s, ends.x + n * ends.stride[0], ends.stride + 1, k, padded);
                    else
                        unpool_image(ends.gradient + n * tiles * s.in, ends.through + n * tiles * s.in, s.in, s.in,
                                     s.height / 2, width, padded + row + k, row, k);
                    look_for_zeros(padded, k, (s.height + 2) * (s.width + 2), some);
                    for (long t = 0; t < tiles; t++) {
                        long corner = t / width * 2 * (s.width + 2) + t % width * 2;
                        empty[filled] = empty_windows(some + corner, s.width + 2);
                        transform_tile(padded + corner * k, row, k, v + filled++ * k, block * k);
                        if (filled == block || (n == last - 1 && t == tiles - 1)) {
                            finish(s, ends, k, u, v, m, empty, block, filled, done);
                            done += filled, filled = 0;
                        }
                    }
                }
            }
        }
    }
    free(flags), free(u), free(scratch);
    return failed;
}

/* Few input channels: weight (out, 3, 3, in) as matrices (9 in, WIDE), a panel of output channels each. */
static int few(Shape s, const float *weight, Ends ends) {
    long panels = up(s.out, WIDE) / WIDE, taps = 9 * s.in, row = (s.width + 2 * s.padding) * s.in;
    long height = s.height / 2 + s.padding - 1, width = s.width / 2 + s.padding - 1;
    long area = up((s.height + 2 * s.padding) * row, 16);
    float *u = allocate(panels * (taps + 1) * WIDE), *scratch = allocate(s.threads * area);
    int failed = !u || !scratch;
    if (!failed) {
        float *bias = u + panels * taps * WIDE;
        memset(u, 0, panels * (taps + 1) * WIDE * 4), memset(scratch, 0, s.threads * area * 4);
        memcpy(bias, ends.bias, s.out * 4);
        for (long o = 0; o < s.out; o++)
            for (long tap = 0; tap < taps; tap++) u[(o / WIDE * taps + tap) * WIDE + o % WIDE] = weight[o * taps + tap];
#pragma omp parallel for schedule(static, 1) num_threads(s.threads)
        for (long part = 0; part < s.threads; part++) {
            float *padded = scratch + part * area;
            for (long n = s.count * part / s.threads; n < s.count * (part + 1) / s.threads; n++) {
                fetch(s, ends.x + n * ends.stride[0], ends.stride + 1, s.in, padded);
                for (long tile = 0; tile < height * width; tile++) {
                    const float *corner = padded + tile / width * 2 * row + tile % width * 2 * s.in, *w = u;
                    for (long first = 0; first < s.out; first += WIDE) {
                        vec left = load(bias + first), right = load(bias + first + LANES);
                        vec y[2][4] = {{left, left, left, left}, {right, right, right, right}};
                        for (int i = 0; i < 3; i++)
#pragma GCC unroll 3
                            for (long tap = 0; tap < 3 * s.in; tap++, w += WIDE) {
                                left = load(w), right = load(w + LANES);
#pragma GCC unroll 4
                                for (int q = 0; q < 4; q++) {
                                    float entry = corner[(i + q / 2) * row + tap + q % 2 * s.in];
                                    y[0][q] += entry * left, y[1][q] += entry * right;
                                }
                            }
                        for (long o = 0; o < least(WIDE, s.out - first); o += LANES) {
                            long to = (n * height * width + tile) * s.out + first + o;
                            pool(y[o / LANES], ends.pooled + to, ends.positive ? ends.positive + to : NULL,
                                 s.out - first - o);
                        }
                    }
                }
            }
        }
    }
    free(u), free(scratch);
    return failed;
}

/* Every entry of the gradient before ReLU and pooling times the whole filter, (pixels, k) times (k, 9 in), and of these
   products the sum of those that fall on the same entry of the input. */
static int few_input_gradient(Shape s, const float *gradient, const uint8_t *positive, const float *weight,
                              float *in_x) {
    Shape maps = {s.count, s.height + 2 * s.padding - 2, s.width + 2 * s.padding - 2, s.out, s.in, 0, s.threads};
    long k = up(s.out, LANES), taps = 9 * s.in, panels = up(taps, WIDE) / WIDE;
    long pooled = maps.height / 2 * (maps.width / 2);
    long pixels = maps.height * maps.width, rows = up(pixels, ROWS), own = up(rows * (k + panels * WIDE), 16);
    float *u = allocate(panels * k * WIDE), *scratch = allocate(s.threads * own);
    int failed = !u || !scratch;
    if (!failed) {
        memset(u, 0, panels * k * WIDE * 4), memset(scratch, 0, s.threads * own * 4);
        for (long o = 0; o < s.out; o++)
            for (long tap = 0; tap < taps; tap++) u[(tap / WIDE * k + o) * WIDE + tap % WIDE] = weight[o * taps + tap];
#pragma omp parallel for schedule(static, 1) num_threads(s.threads)
        for (long part = 0; part < s.threads; part++) {
            float *unpooled = scratch + part * own, *products = unpooled + rows * k;
            for (long n = s.count * part / s.threads; n < s.count * (part + 1) / s.threads; n++) {
                unpool_image(gradient + n * pooled * s.out, positive + n * pooled * s.out, s.out, s.out,
                             maps.height / 2, maps.width / 2, unpooled, maps.width * k, k);
                for (long p = 0; p < panels; p++)
                    for (long r = 0; r < rows; r += ROWS)
                        multiply(unpooled + r * k, k, u + p * k * WIDE, products + (p * rows + r) * WIDE);
                float *to = in_x + n * s.height * s.width * s.in;
                memset(to, 0, s.height * s.width * s.in * 4);
                for (long i = 0; i < s.height; i++)
                    for (long tap = 0; tap < taps; tap++) {
                        long c = tap % s.in, y = i + s.padding - tap / s.in / 3, across = s.padding - tap / s.in % 3;
                        if (y < 0 || y >= maps.height)
                            continue;
                        const float *from = products + (tap / WIDE * rows + y * maps.width) * WIDE + tap % WIDE;
                        long begin = across < 0 ? -across : 0, end = least(s.width, maps.width - across);
                        for (long j = begin; j < end; j++)
                            to[(i * s.width + j) * s.in + c] += from[(j + across) * WIDE];
                    }
            }
        }
    }
    free(u), free(scratch);
    return failed;
}

/* x (count, in, height, width) with any strides, of a channel 1 where there are more than FEW; weight (out, 3, 3, in)
   -> pooled (count, h, w, out); positive, of its shape: bits of where ReLU let through, unless NULL. */
int conv_relu_pool(const Shape *s, const float *x, const long *stride, const float *weight, const float *bias,
                   float *pooled, uint8_t *positive) {
    Ends ends = {.x = x, .stride = stride, .bias = bias, .pooled = pooled, .positive = positive};
    return (s->in > FEW ? winograd : few)(*s, weight, ends);
}

/* From a gradient of pooled -> that of x, (count, height, width, in). Where there are more than FEW input channels, the
   weight is (in, 3, 3, out) and mirrored: that of the convolution which takes the one gradient to the other. */
int input_gradient(const Shape *s, const float *gradient, const uint8_t *positive, const float *weight, float *in_x) {
    if (s->in <= FEW)
        return few_input_gradient(*s, gradient, positive, weight, in_x);
    Shape back = *s;
    back.in = s->out, back.out = s->in;
    Ends ends = {.gradient = gradient, .through = positive, .maps = in_x};
    return winograd(back, weight, ends);
}

/* From a gradient of pooled -> those of weight, (out, 3, 3, in), and bias. Summed directly: where no product is there,
   a weight must have a gradient of exactly 0, as optimisers that divide by its size make much of what is next to it. */
int weight_gradient(const Shape *shape, const float *x, const long *stride, const float *gradient,
                    const uint8_t *positive, float *in_weight, float *in_bias) {
    Shape s = *shape;
    long taps = 9 * s.in, rows = up(taps, ROWS), panels = up(s.out, WIDE) / WIDE, every = panels * (rows + 1) * WIDE;
    long across = s.width + 2 * s.padding, area = (s.height + 2 * s.padding) * across * s.in;
    /* Before pooling, as wide as the padded input so that one loop goes over both; the last two columns are 0. */
    long height = s.height + 2 * s.padding - 2, width = across - 2, pooled = height / 2 * (width / 2);
    long pixels = height * across - 2, unpooled = height * across * WIDE, group = least(CACHED / area + 1, s.count);
    long own = up(every + group * area + unpooled + (rows + 1) * WIDE, 16);
    long *at = malloc(rows * sizeof(long));
    float *scratch = allocate(s.threads * own);
    int failed = !at || !scratch;
    if (!failed) {
        memset(scratch, 0, s.threads * own * 4);
        for (long tap = 0; tap < rows; tap++)
            at[tap] = tap < taps ? tap / (3 * s.in) * across * s.in + tap % (3 * s.in) : 0;
#pragma omp parallel for schedule(static, 1) num_threads(s.threads)
        for (long part = 0; part < s.threads; part++) {
            float *sums = scratch + part * own, *images = sums + every, *d = images + group * area, *sum = d + unpooled;
            long last = s.count * (part + 1) / s.threads;
            for (long first = s.count * part / s.threads; first < last; first += group) {
                long some = least(group, last - first);
                for (long n = 0; n < some; n++)
                    fetch(s, x + (first + n) * stride[0], stride + 1, s.in, images + n * area);
                for (long p = 0; p < panels; p++) {
                    memset(sum, 0, (rows + 1) * WIDE * 4); /* in float32 sums of sums are more exact than long sums */
                    for (long n = 0; n < some; n++) {
                        long from = (first + n) * pooled * s.out + p * WIDE;
                        unpool_image(gradient + from, positive + from, s.out, least(WIDE, s.out - p * WIDE), height / 2,
                                     width / 2, d, across * WIDE, WIDE);
                        for (long r = 0; r < rows; r += ROWS)
                            multiply_add(images + n * area, s.in, at + r, d, pixels, sum + r * WIDE);
                        add_rows(d, pixels, sum + rows * WIDE);
                    }
                    for (long i = 0; i < (rows + 1) * WIDE; i++) sums[p * (rows + 1) * WIDE + i] += sum[i];
                }
            }
        }
        for (long part = 1; part < s.threads; part++)
            for (long i = 0; i < every; i++) scratch[i] += scratch[part * own + i];
        for (long o = 0; o < s.out; o++) {
            const float *from = scratch + o / WIDE * (rows + 1) * WIDE + o % WIDE;
            for (long tap = 0; tap < taps; tap++) in_weight[o * taps + tap] = from[tap * WIDE];
            in_bias[o] = from[rows * WIDE];
        }
    }
    free(at), free(scratch);
    return failed;
}

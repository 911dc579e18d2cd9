/* Convolution 3x3 with padding, by itself or as one function with ReLU and average pooling 2x2; instance norm, ReLU and
   pooling; and their gradients. float32.

   Winograd's F(2x2, 3x3), as in Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016: a tile
   of 4x4 entries of the input (overlapping its neighbours by two) and the filter are both transformed into 16 numbers;
   their products, summed over the input channels, are transformed back into 2x2 entries of the output. That is 16
   multiplications where the sum itself takes 36, and the 2x2 entries are a window of the pooling: the maps between
   convolution and pooling never reach memory. For backward, 4 bits for every pooled entry tell where ReLU let through.
   An entry of the output, or of a gradient, that is a sum of nothing but zeros is exactly 0 here as well.

   With few input channels, as in images, there is nothing to gain from transforms: the sum is taken directly.

   Every function returns 0, or 1 where memory is short. What it writes does not depend on the number of threads, but
   for gradients of weights and biases, whose sums are taken thread by thread. */

#include <math.h>
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

/* As many of the LANES entries as there is room for; 0 beyond. */
static vec load_some(const float *from, long room) {
    if (room >= LANES)
        return load(from);
    vec value = {0};
    memcpy(&value, from, room * 4);
    return value;
}

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

/* A gradient after ReLU and pooling and the bits of where ReLU let through -> that of the 2x2 entries before, in LANES
   channels of which there is room for some. */
static void unpool(const float *gradient, const uint8_t *positive, long room, vec y[4]) {
    bytes narrow = {0};
    if (room >= LANES)
        narrow = *(const bytes *)positive;
    else
        memcpy(&narrow, positive, room);
    bits quarter = (bits)(load_some(gradient, room) / 4), through = __builtin_convertvector(narrow, bits);
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) y[q] = (vec)(quarter & ((through & 1 << q) != 0));
}

/* Maps (count, channels, height, width) with strides. Or the gradient before ReLU and pooling, from that after them and
   the bits of where ReLU let through, both (count, height / 2, width / 2, channels). */
typedef struct {
    const float *x;
    const long *stride;
    const uint8_t *positive;
    long channels, height, width;
} Maps;

/* Of image n, `some` channels from the first on -> to, with rows and columns that far apart. */
static void fetch(Maps from, long n, long first, long some, float *to, long row, long column) {
    if (from.positive) {
        long height = from.height / 2, width = from.width / 2, skip = n * height * width * from.channels + first;
        for (long i = 0; i < height; i++)
            for (long j = 0; j < width; j++, skip += from.channels)
                for (long c = 0; c < some; c += LANES) {
                    float *corner = to + 2 * i * row + 2 * j * column + c;
                    vec y[4];
                    unpool(from.x + skip + c, from.positive + skip + c, some - c, y);
                    for (int q = 0; q < 4; q++) store_some(corner + q / 2 * row + q % 2 * column, y[q], some - c);
                }
        return;
    }
    for (long i = 0; i < from.height; i++, to += row) {
        const float *x = from.x + n * from.stride[0] + first * from.stride[1] + i * from.stride[2];
        if (from.stride[1] == 1 && some > FEW)
            for (long j = 0; j < from.width; j++) memcpy(to + j * column, x + j * from.stride[3], some * 4);
        else
            for (long c = 0; c < some; c++)
                for (long j = 0; j < from.width; j++) to[j * column + c] = x[c * from.stride[1] + j * from.stride[3]];
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
        if (room >= LANES)
            *(bytes *)positive = narrow;
        else
            memcpy(positive, &narrow, room);
    }
}

/* The bias of a convolution, or NULL, and where its output goes: pooled, and bits of where ReLU let through if they are
   wanted; or maps. */
typedef struct {
    const float *bias;
    float *pooled, *maps;
    uint8_t *positive;
} Ends;

/* 2x2 entries of the output, from channel c on, in image n, row i and column j of the windows; `all` channels. */
static void leave(Ends ends, const vec y[4], long all, long c, long n, long i, long j, long height, long width) {
    if (ends.pooled) {
        long to = ((n * height + i) * width + j) * all + c;
        pool(y, ends.pooled + to, ends.positive ? ends.positive + to : NULL, all - c);
        return;
    }
    for (int q = 0; q < 4; q++) {
        long row = 2 * (n * height + i) + q / 2, column = 2 * j + q % 2;
        store_some(ends.maps + (row * 2 * width + column) * all + c, y[q], all - c);
    }
}

/* The products of `filled` tiles from number `done` on, and what becomes of them. */
static void finish(Shape s, Ends ends, long k, const float *u, const float *v, float *m, long block, long filled,
                   long done) {
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
                long tile = done + r;
                vec y[4];
                transform_back(m + r * WIDE + o, block * WIDE, y);
                for (int q = 0; q < 4; q++) y[q] += load(bias + o);
                leave(ends, y, s.out, first + o, tile / tiles, tile % tiles / width, tile % width, s.height / 2, width);
            }
    }
}

static int winograd(Shape s, Maps from, const float *weight, Ends ends) {
    long k = up(s.in, LANES), panels = up(s.out, WIDE) / WIDE, row = (s.width + 2) * k, area = (s.height + 2) * row;
    long width = s.width / 2, tiles = s.height / 2 * width;
    long block = least(TILES, CACHED / (16 * k) / ROWS * ROWS + ROWS), own = up(area + 16 * block * (k + WIDE), 16);
    float *u = allocate(panels * 16 * k * WIDE), *scratch = allocate(s.threads * own);
    int failed = !u || !scratch;
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
                long first = s.count * part / s.threads, last = s.count * (part + 1) / s.threads;
                long filled = 0, done = first * tiles;
                for (long n = first; n < last; n++) {
                    fetch(from, n, 0, s.in, padded + row + k, row, k);
                    for (long t = 0; t < tiles; t++) {
                        const float *corner = padded + t / width * 2 * row + t % width * 2 * k;
                        transform_tile(corner, row, k, v + filled++ * k, block * k);
                        if (filled == block || (n == last - 1 && t == tiles - 1)) {
                            finish(s, ends, k, u, v, m, block, filled, done);
                            done += filled, filled = 0;
                        }
                    }
                }
            }
        }
    }
    free(u), free(scratch);
    return failed;
}

/* Few input channels: weight (out, 3, 3, in) as matrices (9 in, WIDE), a panel of output channels each. */
static int few(Shape s, Maps from, const float *weight, Ends ends) {
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
                fetch(from, n, 0, s.in, padded + s.padding * (row + s.in), row, s.in);
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
                        for (long o = 0; o < least(WIDE, s.out - first); o += LANES)
                            leave(ends, y[o / LANES], s.out, first + o, n, tile / width, tile % width, height, width);
                    }
                }
            }
        }
    }
    free(u), free(scratch);
    return failed;
}

/* Every entry of the gradient times the whole filter, (pixels, k) times (k, 9 in), and of these products the sum of
   those that fall on the same entry of the input. */
static int few_input_gradient(Shape s, Maps gradient, const float *weight, float *in_x) {
    long k = up(s.out, LANES), taps = 9 * s.in, panels = up(taps, WIDE) / WIDE, height = gradient.height;
    long width = gradient.width, rows = up(height * width, ROWS), row = s.width * s.in;
    long own = up(rows * (k + panels * WIDE), 16);
    float *u = allocate(panels * k * WIDE), *scratch = allocate(s.threads * own);
    int failed = !u || !scratch;
    if (!failed) {
        memset(u, 0, panels * k * WIDE * 4), memset(scratch, 0, s.threads * own * 4);
        for (long o = 0; o < s.out; o++)
            for (long tap = 0; tap < taps; tap++) u[(tap / WIDE * k + o) * WIDE + tap % WIDE] = weight[o * taps + tap];
#pragma omp parallel for schedule(static, 1) num_threads(s.threads)
        for (long part = 0; part < s.threads; part++) {
            float *maps = scratch + part * own, *products = maps + rows * k;
            for (long n = s.count * part / s.threads; n < s.count * (part + 1) / s.threads; n++) {
                fetch(gradient, n, 0, s.out, maps, width * k, k);
                for (long p = 0; p < panels; p++)
                    for (long r = 0; r < rows; r += ROWS)
                        multiply(maps + r * k, k, u + p * k * WIDE, products + (p * rows + r) * WIDE);
                float *sums = in_x + n * s.height * row;
                memset(sums, 0, s.height * row * 4);
                for (long i = 0; i < s.height; i++)
                    for (long tap = 0; tap < taps; tap++) {
                        long c = tap % s.in, y = i + s.padding - tap / s.in / 3, across = s.padding - tap / s.in % 3;
                        if (y < 0 || y >= height)
                            continue;
                        const float *from = products + (tap / WIDE * rows + y * width) * WIDE + tap % WIDE;
                        long begin = across < 0 ? -across : 0, end = least(s.width, width - across);
                        for (long j = begin; j < end; j++) sums[i * row + j * s.in + c] += from[(j + across) * WIDE];
                    }
            }
        }
    }
    free(u), free(scratch);
    return failed;
}

static Maps maps_after(const Shape *s, const float *x, const long *stride, const uint8_t *positive) {
    return (Maps){x, stride, positive, s->out, s->height + 2 * s->padding - 2, s->width + 2 * s->padding - 2};
}

/* x (count, in, height, width) with any strides; weight (out, 3, 3, in); bias -> pooled (count, h, w, out) and, unless
   NULL, positive, of the same shape: bits of where ReLU let through. Or, where pooled is NULL, the maps before ReLU,
   (count, 2h, 2w, out). */
int convolve(const Shape *s, const float *x, const long *stride, const float *weight, const float *bias, float *pooled,
             uint8_t *positive, float *maps) {
    Maps from = {x, stride, NULL, s->in, s->height, s->width};
    Ends ends = {.bias = bias, .pooled = pooled, .maps = maps, .positive = positive};
    return (s->in > FEW ? winograd : few)(*s, from, weight, ends);
}

/* From a gradient of maps with strides, or of pooled and its bits (else NULL) -> that of x, (count, height, width, in).
   Where there are more than FEW input channels, the weight is (in, 3, 3, out) and mirrored: that of the convolution
   which takes the one gradient to the other. */
int input_gradient(const Shape *s, const float *gradient, const long *stride, const uint8_t *positive,
                   const float *weight, float *in_x) {
    Maps from = maps_after(s, gradient, stride, positive);
    if (s->in <= FEW)
        return few_input_gradient(*s, from, weight, in_x);
    Shape back = *s;
    back.in = s->out, back.out = s->in;
    return winograd(back, from, weight, (Ends){.maps = in_x});
}

/* From such a gradient -> those of weight, (out, 3, 3, in), and bias. Summed directly: where no product is there, a
   weight must have a gradient of exactly 0, as optimisers that divide by its size make much of what is next to it.
   (What is not finite at the left and right borders of x spreads to all three columns of the filter.) */
int weight_gradient(const Shape *shape, const float *x, const long *stride, const float *gradient,
                    const long *gradient_stride, const uint8_t *positive, float *in_weight, float *in_bias) {
    Shape s = *shape;
    Maps from = {x, stride, NULL, s.in, s.height, s.width}, after = maps_after(&s, gradient, gradient_stride, positive);
    long taps = 9 * s.in, rows = up(taps, ROWS), panels = up(s.out, WIDE) / WIDE, every = panels * (rows + 1) * WIDE;
    long row = (s.width + 2 * s.padding) * s.in, area = (s.height + 2 * s.padding) * row;
    /* The gradient is as wide as the padded input, so that one loop goes over both; the last two columns are 0. */
    long across = after.width + 2, pixels = after.height * across - 2, group = least(CACHED / area + 1, s.count);
    long own = up(every + group * area + (pixels + 2) * WIDE + (rows + 1) * WIDE, 16);
    long *at = malloc(rows * sizeof(long));
    float *scratch = allocate(s.threads * own);
    int failed = !at || !scratch;
    if (!failed) {
        memset(scratch, 0, s.threads * own * 4);
        for (long tap = 0; tap < rows; tap++) at[tap] = tap < taps ? tap / (3 * s.in) * row + tap % (3 * s.in) : 0;
#pragma omp parallel for schedule(static, 1) num_threads(s.threads)
        for (long part = 0; part < s.threads; part++) {
            float *sums = scratch + part * own, *sum = sums + every, *images = sum + (rows + 1) * WIDE;
            float *d = images + group * area;
            long last = s.count * (part + 1) / s.threads;
            for (long first = s.count * part / s.threads; first < last; first += group) {
                long some = least(group, last - first);
                for (long n = 0; n < some; n++)
                    fetch(from, first + n, 0, s.in, images + n * area + s.padding * (row + s.in), row, s.in);
                for (long p = 0; p < panels; p++) {
                    memset(sum, 0, (rows + 1) * WIDE * 4); /* in float32 sums of sums are more exact than long sums */
                    for (long n = 0; n < some; n++) {
                        fetch(after, first + n, p * WIDE, least(WIDE, s.out - p * WIDE), d, across * WIDE, WIDE);
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
            const float *found = scratch + o / WIDE * (rows + 1) * WIDE + o % WIDE;
            for (long tap = 0; tap < taps; tap++) in_weight[o * taps + tap] = found[tap * WIDE];
            in_bias[o] = found[rows * WIDE];
        }
    }
    free(at), free(scratch);
    return failed;
}

/* Instance norm, ReLU and average pooling 2x2 of maps y (count, height, width, in) -> pooled and positive, as above but
   never NULL; and of every map mean and 1 / standard deviation (count, in). Sums are sums of sums over rows. */
int norm_relu_pool(const Shape *shape, const float *y, const float *weight, const float *bias, float eps, float *means,
                   float *rstds, float *pooled, uint8_t *positive) {
    Shape s = *shape;
    long row = s.width * s.in, size = s.height * s.width;
#pragma omp parallel for schedule(static) num_threads(s.threads)
    for (long n = 0; n < s.count; n++)
        for (long c = 0; c < s.in; c += LANES) {
            const float *image = y + n * size * s.in + c;
            long room = s.in - c, to = n * size / 4 * s.in + c;
            vec mean = {0}, variance = {0}, rstd = {0};
            for (long i = 0; i < s.height; i++) {
                vec sum = {0};
                for (long j = 0; j < s.width; j++) sum += load_some(image + i * row + j * s.in, room);
                mean += sum;
            }
            mean /= (float)size;
            for (long i = 0; i < s.height; i++) {
                vec sum = {0};
                for (long j = 0; j < s.width; j++) {
                    vec off = load_some(image + i * row + j * s.in, room) - mean;
                    sum += off * off;
                }
                variance += sum;
            }
            for (int lane = 0; lane < LANES; lane++) rstd[lane] = 1 / sqrtf(variance[lane] / size + eps);
            vec scale = rstd * load_some(weight + c, room), shift = load_some(bias + c, room);
            for (long i = 0; i < s.height; i += 2)
                for (long j = 0; j < s.width; j += 2, to += s.in) {
                    vec z[4];
                    for (int q = 0; q < 4; q++) {
                        const float *from = image + (i + q / 2) * row + (j + q % 2) * s.in;
                        z[q] = (load_some(from, room) - mean) * scale + shift;
                    }
                    pool(z, pooled + to, positive + to, room);
                }
            store_some(means + n * s.in + c, mean, room), store_some(rstds + n * s.in + c, rstd, room);
        }
    return 0;
}

/* From a gradient of pooled -> those of y, and of weight and bias for every image (count, in). */
int norm_relu_pool_gradient(const Shape *shape, const float *y, const float *weight, const float *means,
                            const float *rstds, const float *gradient, const uint8_t *positive, float *in_y,
                            float *in_weight, float *in_bias) {
    Shape s = *shape;
    long row = s.width * s.in, size = s.height * s.width;
#pragma omp parallel for schedule(static) num_threads(s.threads)
    for (long n = 0; n < s.count; n++)
        for (long c = 0; c < s.in; c += LANES) {
            const float *image = y + n * size * s.in + c;
            float *to = in_y + n * size * s.in + c;
            long room = s.in - c, from = n * size / 4 * s.in + c, at = from;
            vec mean = load_some(means + n * s.in + c, room), rstd = load_some(rstds + n * s.in + c, room);
            vec scale = rstd * load_some(weight + c, room), g[4], sum = {0}, with_x = {0};
            for (long i = 0; i < s.height; i += 2) {
                vec part = {0}, part_with_x = {0};
                for (long j = 0; j < s.width; j += 2, at += s.in) {
                    unpool(gradient + at, positive + at, room, g);
                    for (int q = 0; q < 4; q++) {
                        part += g[q];
                        part_with_x += g[q] * (load_some(image + (i + q / 2) * row + (j + q % 2) * s.in, room) - mean);
                    }
                }
                sum += part, with_x += part_with_x * rstd;
            }
            store_some(in_weight + n * s.in + c, with_x, room), store_some(in_bias + n * s.in + c, sum, room);
            sum /= (float)size, with_x *= rstd / (float)size;
            for (long i = 0; i < s.height; i += 2)
                for (long j = 0; j < s.width; j += 2, from += s.in) {
                    unpool(gradient + from, positive + from, room, g);
                    for (int q = 0; q < 4; q++) {
                        long entry = (i + q / 2) * row + (j + q % 2) * s.in;
                        vec off = load_some(image + entry, room) - mean;
                        store_some(to + entry, scale * (g[q] - sum - off * with_x), room);
                    }
                }
        }
    return 0;
}

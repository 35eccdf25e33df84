// Equations 3 to 6 and the mask on a GPU, for all expressions of a run at once.
//
// B expressions, L blocks, N tokens, D channels, a mask of H x W. All arrays are C-contiguous
// float32 unless said otherwise; cuda_postprocess.py launches the kernels in the order in which
// they stand here. The arithmetic is that of method.py and geometry.py:
//
// - Sums over blocks, min-max, thresholds and the upsampling are bit for bit NumPy's. Compile
//   with --fmad=false: a product and a sum in one rounding would be another number.
// - Sums over channels and tokens are float32 in another order than a BLAS's, the same in every
//   run on one GPU: only integers are added atomically.
// - What is not finite travels as in NumPy and ends as a reason; nothing waits for the host.
//
// The floor is two reads of the features, 2 N D floats: class means need every token before any
// token has its score. The score and the second class means share the second read.

// What the launches need to know as well: threads of a block, and of one of `attention_maps`;
// channels that a thread holds, ceil(D / THREADS); rows of pixels of a block of `mask_pixels`.
#if !defined(THREADS) || !defined(MAP_THREADS) || !defined(HELD) || !defined(PIXEL_ROWS)
#error "cuda_postprocess.py defines THREADS, MAP_THREADS, HELD and PIXEL_ROWS"
#endif

constexpr int WARP = 32;
// Rows of features that a block holds in registers at once: about 64 values a thread, the loads
// that a GPU needs under way to be kept busy.
constexpr int ROWS = HELD > 32 ? 1 : HELD > 16 ? 2 : HELD > 8 ? 4 : 8;
constexpr unsigned EVERYONE = 0xffffffffu;

// Below this span, of the largest magnitude, a float32 sum over blocks is rounding.
constexpr double CONSTANT_SPAN = 1e-6;
constexpr float LARGEST = 3.402823466e+38f;

enum Reason { NO_REASON, ATTENTION_NOT_FINITE, ATTENTION_CONSTANT, FEATURES_NOT_FINITE };
enum Pass { BY_REGION, BY_SCORE };
enum Map { COARSE, REFINED, SCORES, MAPS };

// What is said of one expression besides its maps and its mask; 12 words.
struct Answer {
    int reason;
    int pixels;             // in the mask
    float separability;
    int unused;
    int tokens[2][2];       // by pass and class (foreground, background)
    int not_zero[2][2];     // likewise, without zero vectors
};
static_assert(sizeof(Answer) == 48, "postprocess_cuda.py reads it");

struct Sum {
    __device__ static float of(float a, float b) { return a + b; }
};
struct Least {
    __device__ static float of(float a, float b) { return fminf(a, b); }
};

// Combine COUNT values over the SIZE threads of a block, in a fixed order; all get the results.
template <typename Combine, int SIZE = THREADS, int COUNT>
__device__ void combine(float (&values)[COUNT]) {
    constexpr int WARPS = SIZE / WARP;
    __shared__ float of_warp[COUNT][WARPS];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
#pragma unroll
        for (int away = WARP / 2; away > 0; away /= 2) {
            values[i] = Combine::of(values[i], __shfl_xor_sync(EVERYONE, values[i], away));
        }
        if (threadIdx.x % WARP == 0) of_warp[i][threadIdx.x / WARP] = values[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        values[i] = of_warp[i][0];
#pragma unroll
        for (int w = 1; w < WARPS; ++w) values[i] = Combine::of(values[i], of_warp[i][w]);
    }
    __syncthreads();  // before anyone writes to `of_warp` again
}

// T_l a_l of every block, for graphs that return the matrices. A block of threads has a row.
// Grid: (N, L, B). Floor: B L N^2 floats, each read once.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
propagate(const float* matrices, const float* attention, float* propagated, int tokens) {
    const size_t block = static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y;
    const float* row = matrices + (block * tokens + blockIdx.x) * tokens;
    const float* vector = attention + block * tokens;
    float sum[1] = {0.0f};
#pragma unroll 8
    for (int j = threadIdx.x; j < tokens; j += THREADS) sum[0] += row[j] * vector[j];
    combine<Sum>(sum);
    if (threadIdx.x == 0) propagated[block * tokens + blockIdx.x] = sum[0];
}

// Equations 3 and 4: sum over blocks, then minmax; why there is no answer, if there is none.
// Grid: (COARSE and REFINED, B). Floor: 2 B L N floats; so few that latency decides, hence one
// large block for each map.
extern "C" __global__ void __launch_bounds__(MAP_THREADS)
attention_maps(const float* attention, const float* propagated, float* maps, Answer* answers,
               int blocks, int tokens) {
    const int map = blockIdx.x;
    const float* vectors = map == COARSE ? attention : propagated;
    vectors += static_cast<size_t>(blockIdx.y) * blocks * tokens;
    float* values = maps + (static_cast<size_t>(blockIdx.y) * MAPS + map) * tokens;
    // Least, greatest and "all are finite", as three minima.
    float ends[3] = {LARGEST, LARGEST, 1.0f};
    for (int n = threadIdx.x; n < tokens; n += MAP_THREADS) {
        float sum = vectors[n];
#pragma unroll 16
        for (int l = 1; l < blocks; ++l) sum += vectors[static_cast<size_t>(l) * tokens + n];
        values[n] = sum;
        ends[0] = fminf(ends[0], sum);
        ends[1] = fminf(ends[1], -sum);
        if (!isfinite(sum)) ends[2] = 0.0f;
    }
    combine<Least, MAP_THREADS>(ends);
    const double low = ends[0], high = -ends[1];
    Reason reason = NO_REASON;
    if (ends[2] == 0.0f) {
        reason = ATTENTION_NOT_FINITE;
    } else if (high - low <= CONSTANT_SPAN * fmax(fabs(low), fabs(high))) {
        reason = ATTENTION_CONSTANT;
    }
    const float span = -ends[1] - ends[0];
    for (int n = threadIdx.x; n < tokens; n += MAP_THREADS) {
        values[n] = reason == NO_REASON ? (values[n] - ends[0]) / span : 0.0f;
    }
    if (map == REFINED && threadIdx.x == 0) {
        answers[blockIdx.y] = Answer{};
        answers[blockIdx.y].reason = reason;
    }
}

// One read of the features for two things that depend on each other: a number for each row (its
// norm, or its score), which says what class it is of, and the sums of each class, equation 5.
// A row waits in registers for its number. Each block of threads has `rows` of them, and writes
// sums of its own.
template <Pass PASS>
__device__ void class_sums(const float* features, const float* means, float* maps, float* inverse,
                           float* sums, Answer* answers, int tokens, int channels, int rows,
                           float tau, bool cosine) {
    const int expression = blockIdx.y;
    const int begin = blockIdx.x * rows, end = min(begin + rows, tokens);
    features += static_cast<size_t>(expression) * tokens * channels;
    inverse += static_cast<size_t>(expression) * tokens;
    const float* refined = maps + (static_cast<size_t>(expression) * MAPS + REFINED) * tokens;
    float* scores = maps + (static_cast<size_t>(expression) * MAPS + SCORES) * tokens;

    float apart[HELD];  // P_fg - P_bg
    if (PASS == BY_SCORE) {
        means += static_cast<size_t>(expression) * 2 * channels;
        float length[2] = {0.0f, 0.0f};
        for (int c = 0; cosine && c < 2; ++c) {
            for (int d = threadIdx.x; d < channels; d += THREADS) {
                length[c] += means[c * channels + d] * means[c * channels + d];
            }
        }
        if (cosine) combine<Sum>(length);
        for (int c = 0; c < 2; ++c) length[c] = length[c] > 0.0f ? sqrtf(length[c]) : 1.0f;
#pragma unroll
        for (int k = 0; k < HELD; ++k) {
            const int d = threadIdx.x + k * THREADS;
            apart[k] = d < channels ? means[d] / length[0] - means[channels + d] / length[1] : 0.0f;
        }
    }
    float of_class[2][HELD] = {};
    int count[2] = {0, 0}, not_zero[2] = {0, 0};
    const int steps = (rows + ROWS - 1) / ROWS;
    for (int step = 0; step < steps; ++step) {
        // Backwards in the second pass: what the first one read last may still be in the cache.
        const int first = begin + (PASS == BY_REGION ? step : steps - 1 - step) * ROWS;
        float held[ROWS][HELD], number[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int k = 0; k < HELD; ++k) {
                const int d = threadIdx.x + k * THREADS;
                const bool there = first + r < end && d < channels;
                held[r][k] = there ? features[static_cast<size_t>(first + r) * channels + d] : 0.0f;
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            number[r] = 0.0f;
#pragma unroll
            for (int k = 0; k < HELD; ++k) {
                number[r] += held[r][k] * (PASS == BY_REGION ? held[r][k] : apart[k]);
            }
        }
        combine<Sum>(number);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int n = first + r;
            if (n >= end) continue;
            float scale;
            bool inside;
            if (PASS == BY_REGION) {
                scale = number[r] > 0.0f ? 1.0f / sqrtf(number[r]) : 0.0f;
                inside = refined[n] > tau;
                if (threadIdx.x == 0) inverse[n] = scale;
            } else {
                scale = inverse[n];
                const float score = number[r] * scale;  // equation 6 before its argmax
                inside = score > 0.0f;
                if (threadIdx.x == 0) scores[n] = score;
                if (threadIdx.x == 0 && !isfinite(score)) {
                    atomicCAS(&answers[expression].reason, NO_REASON, FEATURES_NOT_FINITE);
                }
            }
            ++count[inside ? 0 : 1];
            if (scale != 0.0f) ++not_zero[inside ? 0 : 1];
            // Products with zero, too, as in a product of matrices: 0 x inf is not finite.
            const float weight[2] = {inside ? scale : 0.0f, inside ? 0.0f : scale};
#pragma unroll
            for (int k = 0; k < HELD; ++k) {
                of_class[0][k] += weight[0] * held[r][k];
                of_class[1][k] += weight[1] * held[r][k];
            }
        }
    }
    sums += (static_cast<size_t>(expression) * gridDim.x + blockIdx.x) * 2 * channels;
#pragma unroll
    for (int k = 0; k < HELD; ++k) {
        const int d = threadIdx.x + k * THREADS;
        if (d < channels) {
            sums[d] = of_class[0][k];
            sums[channels + d] = of_class[1][k];
        }
    }
    if (threadIdx.x < 2) {
        const int c = threadIdx.x;
        atomicAdd(&answers[expression].tokens[PASS][c], count[c]);
        atomicAdd(&answers[expression].not_zero[PASS][c], not_zero[c]);
    }
}

// The norms of the features, and sums over the classes of M = RAM > tau.
// Grid: (G, B), G blocks of `rows` tokens. Floor: B N D floats.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
sums_by_region(const float* features, float* maps, float* inverse, float* sums, Answer* answers,
               int tokens, int channels, int rows, float tau) {
    class_sums<BY_REGION>(features, nullptr, maps, inverse, sums, answers, tokens, channels, rows,
                          tau, false);
}

// The means of both classes from the sums of each block: (B, G, 2, D) to (B, 2, D).
// Grid: (D / 32, B). Floor: 2 B G D floats, from the cache.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
class_means(const float* sums, float* means, const Answer* answers, int groups, int channels,
            int pass) {
    __shared__ float of_slice[2][THREADS / WARP][WARP];
    const int lane = threadIdx.x % WARP, slice = threadIdx.x / WARP;
    const int d = blockIdx.x * WARP + lane;
    sums += static_cast<size_t>(blockIdx.y) * groups * 2 * channels;
    for (int c = 0; c < 2; ++c) {
        float sum = 0.0f;
#pragma unroll 8
        for (int g = slice; g < groups; g += THREADS / WARP) {
            if (d < channels) sum += sums[(static_cast<size_t>(g) * 2 + c) * channels + d];
        }
        of_slice[c][slice][lane] = sum;
    }
    __syncthreads();
    const int c = slice;
    if (c >= 2 || d >= channels) return;
    float sum = of_slice[c][0][lane];
    for (int s = 1; s < THREADS / WARP; ++s) sum += of_slice[c][s][lane];
    const int count = answers[blockIdx.y].tokens[pass][c];
    means[(static_cast<size_t>(blockIdx.y) * 2 + c) * channels + d] = sum / max(count, 1);
}

// Equation 6: scores, and in the same read sums over the classes of `scores > 0`.
// Grid: (G, B). Floor: B N D floats, less what the cache kept.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
scores_and_sums(const float* features, const float* means, float* maps, float* inverse, float* sums,
                Answer* answers, int tokens, int channels, int rows, int cosine) {
    class_sums<BY_SCORE>(features, means, maps, inverse, sums, answers, tokens, channels, rows,
                         0.0f, cosine != 0);
}

// Fisher's score of the classes of `scores > 0`, by a whole block; see `separability`.
__device__ void separability(const float* means, Answer* answer, int channels) {
    float squares[2] = {0.0f, 0.0f};  // |mu_fg - mu_bg|^2, |mu_fg|^2 + |mu_bg|^2
    for (int d = threadIdx.x; d < channels; d += THREADS) {
        const float fg = means[d], bg = means[channels + d];
        squares[0] += (fg - bg) * (fg - bg);
        squares[1] += fg * fg + bg * bg;
    }
    combine<Sum>(squares);
    if (threadIdx.x > 0) return;
    const int fg = answer->tokens[BY_SCORE][0], bg = answer->tokens[BY_SCORE][1];
    if (fg == 0 || bg == 0 || answer->reason != NO_REASON) return;
    const double lengths = static_cast<double>(answer->not_zero[BY_SCORE][0]) / fg +
                           static_cast<double>(answer->not_zero[BY_SCORE][1]) / bg;
    answer->separability = static_cast<float>(squares[0] / fmax(lengths - squares[1], 1e-6));
}

// For answers whose masks the host makes: what `mask_pixels` says besides. Grid: (B).
extern "C" __global__ void __launch_bounds__(THREADS, 2)
separabilities(const float* means, Answer* answers, int channels) {
    const int expression = blockIdx.x;
    separability(means + static_cast<size_t>(expression) * 2 * channels, answers + expression,
                 channels);
}

// How pixels of the image lie on one axis of the token grid; see geometry.upsample.
struct Axis {
    double scale, start, cells_per_pixel;
    int cells;

    // The cell at or before a pixel, and the share of the next one.
    __device__ int find(int pixel, float* share) const {
        const double centre = (pixel + 0.5) * scale - start;
        const double at = fmin(fmax(centre * cells_per_pixel - 0.5, 0.0), cells - 1.0);
        const int cell = static_cast<int>(at);
        *share = static_cast<float>(at - cell);
        return cell;
    }
};

// One block for each expression says how far apart its classes are, all others wait for nothing:
// the mask is where the upsampled scores are positive. `masks` (B, H, W) of bytes, 0 or 1.
// Scores of an expression begin `stride` floats after those of the one before.
// Grid: (W / THREADS, H / PIXEL_ROWS, B). Floor: B H W bytes written.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
mask_pixels(const float* scores, const float* means, Answer* answers, unsigned char* masks,
            int stride, int channels, int width, int height, double x_scale, double x_start,
            double x_cells_per_pixel, int columns, double y_scale, double y_start,
            double y_cells_per_pixel, int grid_rows) {
    __shared__ int top_of[PIXEL_ROWS];
    __shared__ float share_of[PIXEL_ROWS];
    const int expression = blockIdx.z, first = blockIdx.y * PIXEL_ROWS;
    Answer* answer = answers + expression;
    scores += static_cast<size_t>(expression) * stride;
    if (channels > 0 && blockIdx.x == 0 && blockIdx.y == 0) {
        separability(means + static_cast<size_t>(expression) * 2 * channels, answer, channels);
    }
    if (threadIdx.x < PIXEL_ROWS) {
        const Axis down{y_scale, y_start, y_cells_per_pixel, grid_rows};
        top_of[threadIdx.x] = down.find(first + threadIdx.x, &share_of[threadIdx.x]);
    }
    __syncthreads();
    const int x = blockIdx.x * THREADS + threadIdx.x;
    float inside[1] = {0.0f};
    if (x < width) {
        float share;
        const Axis across{x_scale, x_start, x_cells_per_pixel, columns};
        const int left = across.find(x, &share), right = min(left + 1, columns - 1);
        unsigned char* mask = masks + (static_cast<size_t>(expression) * height + first) * width + x;
        for (int r = 0; r < PIXEL_ROWS && first + r < height; ++r, mask += width) {
            const float* upper = scores + static_cast<size_t>(top_of[r]) * columns;
            const float* lower =
                scores + static_cast<size_t>(min(top_of[r] + 1, grid_rows - 1)) * columns;
            const float above = upper[left] * (1.0f - share) + upper[right] * share;
            const float below = lower[left] * (1.0f - share) + lower[right] * share;
            const float value = above + (below - above) * share_of[r];
            *mask = value > 0.0f && answer->reason == NO_REASON;
            inside[0] += *mask;
        }
    }
    combine<Sum>(inside);
    if (threadIdx.x == 0 && inside[0] > 0.0f) {
        atomicAdd(&answer->pixels, static_cast<int>(inside[0]));
    }
}

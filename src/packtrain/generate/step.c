/* One step of a Llama for a few tokens of several sequences: every weight is read once, in the order in which it lies in
   memory, and each number is added up in the same order whatever the other tokens are.

   Letters: N tokens of the step, D hidden size, F intermediate size, H query heads, G key-value heads, K head width,
   S positions of a slot, V vocabulary. */

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

typedef float lanes __attribute__((vector_size(32), aligned(4)));
typedef int32_t ints __attribute__((vector_size(32), aligned(4)));
typedef int8_t bytes __attribute__((vector_size(8), aligned(1)));
typedef uint16_t halves __attribute__((vector_size(16), aligned(2)));
enum { LANES = 8, ROWS = 4, TOKENS = 3, CHUNK = 32, PHASES = 5, LINE = 64, AHEAD = 16384 };
enum { FLOAT32, BFLOAT16, INT8 };

/* [rows, columns], row after row. INT8: a row's numbers times its scale. */
typedef struct { const void *numbers; const float *scales; int64_t rows, columns, kind; } matrix;

typedef struct {
  matrix q, k, v, o, gate, up, down;
  const float *attention_norm, *feed_forward_norm, *q_norm, *k_norm; /* the last two may be null */
} layer;

typedef struct {
  int64_t num_layers, D, F, H, G, K, S, slots, max_tokens, num_threads;
  float eps;
  const layer *layers;
  matrix embedding, output;
  const float *norm;
  const float *cosines, *sines; /* [S, K/2] */
  float *keys, *values;         /* [layers, slots, G, S, K] */
  float *x, *q, *heads, *inner; /* [N, D], [N, H*K], [N, H*K], [N, F] */
  float *normed;                /* [threads, N, D] */
  float *scores;                /* [threads, S] */
} model;

typedef struct {
  const model *m;
  int64_t N;
  const int32_t *tokens, *slots, *positions;
  int64_t num_wanted;
  const int32_t *wanted; /* which of the tokens need logits */
  float *logits;         /* [wanted, V] */
  int64_t *next, *finished; /* [1 + layers * PHASES + 1]: of each part, chunks that were taken, and that are finished */
} step;

typedef struct { step *s; int64_t thread; } seat;

/* A part of the work of the step that is done when all its chunks are. Threads take them as they come, so that one that the
   system has stopped keeps the others from nothing but the chunk that it has in hand. */
static int64_t take(step *s, int64_t part) { return __atomic_fetch_add(s->next + part, 1, __ATOMIC_RELAXED); }

static void finish(step *s, int64_t part) { __atomic_add_fetch(s->finished + part, 1, __ATOMIC_RELEASE); }

static void wait_for(step *s, int64_t part, int64_t chunks) {
  for (int spins = 0; __atomic_load_n(s->finished + part, __ATOMIC_ACQUIRE) < chunks; spins++)
    if (spins > 2000) sched_yield(); /* the thread waited for may need this core */
}

static int64_t chunks_of(int64_t rows) { return (rows + CHUNK - 1) / CHUNK; }

static inline float sum(lanes a) {
  return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}

static inline __attribute__((always_inline)) lanes load(const void *numbers, int64_t at, int kind) {
  if (kind == FLOAT32) return *(const lanes *)((const float *)numbers + at);
#ifdef __AVX2__ /* GCC widens vectors one number at a time. */
  if (kind == BFLOAT16) {
    __m128i narrow = _mm_loadu_si128((const __m128i *)((const uint16_t *)numbers + at));
    return (lanes)_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16);
  }
  __m128i narrow = _mm_loadl_epi64((const __m128i *)((const int8_t *)numbers + at));
  return (lanes)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(narrow));
#else
  if (kind == BFLOAT16) return (lanes)(__builtin_convertvector(*(const halves *)((const uint16_t *)numbers + at), ints) << 16);
  return __builtin_convertvector(__builtin_convertvector(*(const bytes *)((const int8_t *)numbers + at), ints), lanes);
#endif
}

static inline float load_one(const void *numbers, int64_t at, int kind) {
  if (kind == FLOAT32) return ((const float *)numbers)[at];
  if (kind == BFLOAT16) {
    union { uint32_t bits; float value; } wide = {(uint32_t)((const uint16_t *)numbers)[at] << 16};
    return wide.value;
  }
  return ((const int8_t *)numbers)[at];
}

/* sums[r][t] += weights[row + r] . x[t] of the columns from i to end. */
static inline __attribute__((always_inline)) void
accumulate(const matrix *w, int64_t row, int rows, const float *x, int64_t x_stride, int tokens, int64_t i, int64_t end, int kind, lanes sums[ROWS][TOKENS]) {
  for (; i < end; i += LANES) {
    lanes xs[TOKENS];
    for (int t = 0; t < tokens; t++) xs[t] = *(const lanes *)(x + t * x_stride + i);
    for (int r = 0; r < rows; r++) {
      lanes weights = load(w->numbers, (row + r) * w->columns + i, kind);
      for (int t = 0; t < tokens; t++) sums[r][t] += weights * xs[t];
    }
  }
}

/* out[t][r] = weights[row + r] . x[t], for a fixed number of rows and tokens, so that the sums stay in registers. While it
   reads these rows it asks the memory for the rows that follow, `ahead` bytes further: rows are too short for the CPU to see
   where the reading goes. */
static inline __attribute__((always_inline)) void
tile(const matrix *w, int64_t row, int rows, const float *x, int64_t x_stride, int tokens, float *out, int64_t out_stride, int kind, int64_t ahead) {
  const int64_t columns = w->columns, whole = columns / LANES * LANES, size = kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1;
  const int64_t line = LINE / size;
  lanes sums[ROWS][TOKENS];
  for (int r = 0; r < rows; r++)
    for (int t = 0; t < tokens; t++) sums[r][t] = (lanes){0};
  int64_t i = 0;
  for (; i + line <= whole; i += line) {
    if (ahead)
      for (int r = 0; r < rows; r++) __builtin_prefetch((const char *)w->numbers + ((row + r) * columns + i) * size + ahead, 0, 3);
    accumulate(w, row, rows, x, x_stride, tokens, i, i + line, kind, sums);
  }
  accumulate(w, row, rows, x, x_stride, tokens, i, whole, kind, sums);
  for (int r = 0; r < rows; r++)
    for (int t = 0; t < tokens; t++) {
      float total = sum(sums[r][t]);
      for (i = whole; i < columns; i++) total += load_one(w->numbers, (row + r) * columns + i, kind) * x[t * x_stride + i];
      out[t * out_stride + r] = kind == INT8 ? total * w->scales[row + r] : total;
    }
}

static inline __attribute__((always_inline)) void
multiply_kind(const matrix *w, int64_t from, int64_t to, const float *x, int64_t x_stride, int64_t N, float *out, int64_t out_stride, int kind) {
  const int64_t bytes_of_tile = ROWS * w->columns * (kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1);
  const int64_t whole_tiles_ahead = (AHEAD + bytes_of_tile - 1) / bytes_of_tile * bytes_of_tile;
  for (int64_t row = from; row < to; row += ROWS) {
    int rows = to - row < ROWS ? to - row : ROWS;
    for (int64_t t = 0; t < N;) {
      const float *xs = x + t * x_stride;
      float *y = out + t * out_stride + (row - from);
      int tokens = N - t < TOKENS ? N - t : TOKENS;
      /* Only the first tokens wait for the memory; the others find the rows in the cache. */
      int64_t ahead = t ? 0 : whole_tiles_ahead;
      if (rows == ROWS && tokens == 3) tile(w, row, ROWS, xs, x_stride, 3, y, out_stride, kind, ahead);
      else if (rows == ROWS && tokens == 2) tile(w, row, ROWS, xs, x_stride, 2, y, out_stride, kind, ahead);
      else if (rows == ROWS) tile(w, row, ROWS, xs, x_stride, 1, y, out_stride, kind, ahead);
      else for (int r = 0; r < rows; r++)
        for (int u = 0; u < tokens; u++) tile(w, row + r, 1, xs + u * x_stride, x_stride, 1, y + u * out_stride + r, out_stride, kind, 0);
      t += tokens;
    }
  }
}

/* out[t][r - from] = w[r] . x[t] for rows from <= r < to and all N tokens. */
static void multiply(const matrix *w, int64_t from, int64_t to, const float *x, int64_t x_stride, int64_t N, float *out, int64_t out_stride) {
  if (w->kind == FLOAT32) multiply_kind(w, from, to, x, x_stride, N, out, out_stride, FLOAT32);
  else if (w->kind == BFLOAT16) multiply_kind(w, from, to, x, x_stride, N, out, out_stride, BFLOAT16);
  else multiply_kind(w, from, to, x, x_stride, N, out, out_stride, INT8);
}

static float dot(const float *a, const float *b, int64_t size) {
  lanes sums = {0};
  int64_t i = 0;
  for (; i + LANES <= size; i += LANES) sums += *(const lanes *)(a + i) * *(const lanes *)(b + i);
  float total = sum(sums);
  for (; i < size; i++) total += a[i] * b[i];
  return total;
}

static void normalize(const float *x, const float *weight, float eps, int64_t size, float *out) {
  float scale = 1.0f / sqrtf(dot(x, x, size) / size + eps);
  for (int64_t i = 0; i < size; i++) out[i] = x[i] * scale * weight[i];
}

/* Each pair (i, i + K/2) of a head, turned by its position's angle. */
static void rotate(const model *m, float *head, int64_t position) {
  const int64_t half = m->K / 2;
  const float *cosines = m->cosines + position * half, *sines = m->sines + position * half;
  for (int64_t i = 0; i < half; i++) {
    float a = head[i], b = head[i + half];
    head[i] = a * cosines[i] - b * sines[i];
    head[i + half] = b * cosines[i] + a * sines[i];
  }
}

static float *cached(const model *m, float *all, int64_t l, int64_t slot, int64_t g, int64_t position) {
  return all + (((l * m->slots + slot) * m->G + g) * m->S + position) * m->K;
}

/* The queries of the step, and its keys and values in the cache: a head at a time. */
static void project(step *s, int64_t part, int64_t l, const float *normed) {
  const model *m = s->m;
  const layer *of = m->layers + l;
  const int64_t K = m->K, D = m->D;
  for (int64_t head; (head = take(s, part)) < m->H + 2 * m->G; finish(s, part)) {
    int is_query = head < m->H, is_key = !is_query && head < m->H + m->G;
    int64_t g = is_query ? head : head - m->H - (is_key ? 0 : m->G);
    const matrix *w = is_query ? &of->q : is_key ? &of->k : &of->v;
    const float *norm = is_query ? of->q_norm : is_key ? of->k_norm : 0;
    float found[s->N * K];
    multiply(w, g * K, (g + 1) * K, normed, D, s->N, found, K);
    for (int64_t n = 0; n < s->N; n++) {
      float *here = is_query ? m->q + (n * m->H + head) * K
                             : cached(m, is_key ? m->keys : m->values, l, s->slots[n], g, s->positions[n]);
      if (norm) normalize(found + n * K, norm, m->eps, K, here);
      else memcpy(here, found + n * K, K * sizeof(float));
      if (is_query || is_key) rotate(m, here, s->positions[n]);
    }
  }
}

/* softmax(q . k / sqrt(K)) . v of one query head over the positions up to its own. */
static void attend(step *s, int64_t part, int64_t l, float *scores) {
  const model *m = s->m;
  const int64_t K = m->K, group = m->H / m->G;
  const float scale = 1.0f / sqrtf((float)K);
  for (int64_t item; (item = take(s, part)) < s->N * m->H; finish(s, part)) {
    int64_t n = item / m->H, h = item % m->H, length = s->positions[n] + 1;
    const float *q = m->q + (n * m->H + h) * K;
    const float *keys = cached(m, m->keys, l, s->slots[n], h / group, 0);
    const float *values = cached(m, m->values, l, s->slots[n], h / group, 0);
    float highest = -INFINITY, total = 0;
    for (int64_t i = 0; i < length; i++) {
      scores[i] = dot(q, keys + i * K, K) * scale;
      if (scores[i] > highest) highest = scores[i];
    }
    float *out = m->heads + (n * m->H + h) * K;
    memset(out, 0, K * sizeof(float));
    for (int64_t i = 0; i < length; i++) {
      float weight = expf(scores[i] - highest);
      total += weight;
      const float *value = values + i * K;
      for (int64_t k = 0; k < K; k++) out[k] += weight * value[k];
    }
    for (int64_t k = 0; k < K; k++) out[k] /= total;
  }
}

/* x += w . input, for all tokens. */
static void add_product(step *s, int64_t part, const matrix *w, const float *input) {
  const model *m = s->m;
  float found[s->N * CHUNK];
  for (int64_t chunk; (chunk = take(s, part)) * CHUNK < w->rows; finish(s, part)) {
    int64_t from = chunk * CHUNK, to = from + CHUNK < w->rows ? from + CHUNK : w->rows;
    multiply(w, from, to, input, w->columns, s->N, found, CHUNK);
    for (int64_t n = 0; n < s->N; n++)
      for (int64_t r = from; r < to; r++) m->x[n * m->D + r] += found[n * CHUNK + r - from];
  }
}

/* inner = silu(gate . x) * (up . x). */
static void gate(step *s, int64_t part, int64_t l, const float *normed) {
  const model *m = s->m;
  const layer *of = m->layers + l;
  float gates[s->N * CHUNK], ups[s->N * CHUNK];
  for (int64_t chunk; (chunk = take(s, part)) * CHUNK < m->F; finish(s, part)) {
    int64_t from = chunk * CHUNK, to = from + CHUNK < m->F ? from + CHUNK : m->F;
    multiply(&of->gate, from, to, normed, m->D, s->N, gates, CHUNK);
    multiply(&of->up, from, to, normed, m->D, s->N, ups, CHUNK);
    for (int64_t n = 0; n < s->N; n++)
      for (int64_t r = from; r < to; r++) {
        float g = gates[n * CHUNK + r - from];
        m->inner[n * m->F + r] = g / (1.0f + expf(-g)) * ups[n * CHUNK + r - from];
      }
  }
}

static void embed(step *s) {
  const model *m = s->m;
  const matrix *w = &m->embedding;
  for (int64_t n; (n = take(s, 0)) < s->N; finish(s, 0)) {
    float scale = w->kind == INT8 ? w->scales[s->tokens[n]] : 1.0f;
    for (int64_t i = 0; i < m->D; i++) m->x[n * m->D + i] = load_one(w->numbers, s->tokens[n] * m->D + i, w->kind) * scale;
  }
  wait_for(s, 0, s->N);
}

static void *run(void *argument) {
  step *s = ((seat *)argument)->s;
  const int64_t thread = ((seat *)argument)->thread;
  const model *m = s->m;
  const int64_t D = m->D;
  float *normed = m->normed + thread * m->max_tokens * D, *scores = m->scores + thread * m->S;
  embed(s);
  for (int64_t l = 0; l < m->num_layers; l++) {
    const layer *of = m->layers + l;
    const int64_t part = 1 + l * PHASES;
    /* Each thread takes the norm for itself: that costs less than waiting for another. A thread that comes late may read x
       while others change it; then all chunks that need this norm have been taken. */
    for (int64_t n = 0; n < s->N; n++) normalize(m->x + n * D, of->attention_norm, m->eps, D, normed + n * D);
    project(s, part, l, normed);
    wait_for(s, part, m->H + 2 * m->G);
    attend(s, part + 1, l, scores);
    wait_for(s, part + 1, s->N * m->H);
    add_product(s, part + 2, &of->o, m->heads);
    wait_for(s, part + 2, chunks_of(D));
    for (int64_t n = 0; n < s->N; n++) normalize(m->x + n * D, of->feed_forward_norm, m->eps, D, normed + n * D);
    gate(s, part + 3, l, normed);
    wait_for(s, part + 3, chunks_of(m->F));
    add_product(s, part + 4, &of->down, m->inner);
    wait_for(s, part + 4, chunks_of(D));
  }
  for (int64_t i = 0; i < s->num_wanted; i++) normalize(m->x + s->wanted[i] * D, m->norm, m->eps, D, normed + i * D);
  const int64_t V = m->output.rows;
  for (int64_t chunk; (chunk = take(s, 1 + m->num_layers * PHASES)) * CHUNK < V;) {
    int64_t from = chunk * CHUNK, to = from + CHUNK < V ? from + CHUNK : V;
    multiply(&m->output, from, to, normed, D, s->num_wanted, s->logits + from, V);
  }
  return 0;
}

/* Logits of the tokens that want them; the others only join the cache. Takes fewer threads if no more can be started.
   `counters` is [2, 1 + layers * PHASES + 1]. */
void run_step(const model *m, int64_t N, const int32_t *tokens, const int32_t *slots, const int32_t *positions,
              int64_t num_wanted, const int32_t *wanted, float *logits, int64_t *counters) {
  const int64_t parts = 2 + m->num_layers * PHASES;
  step s = {m, N, tokens, slots, positions, num_wanted, wanted, logits, counters, counters + parts};
  memset(counters, 0, 2 * parts * sizeof(int64_t));
  pthread_t others[m->num_threads];
  seat seats[m->num_threads];
  int64_t started = 1;
  for (; started < m->num_threads; started++) {
    seats[started] = (seat){&s, started};
    if (pthread_create(others + started, 0, run, seats + started)) break;
  }
  seats[0] = (seat){&s, 0};
  run(seats);
  for (int64_t t = 1; t < started; t++) pthread_join(others[t], 0);
}

/* From JPEGs in open files to square uint8 RGB images in a batch, many in one call.
 *
 * The caller releases the interpreter's lock for the whole call, so that threads do not wait for
 * each other between images. libjpeg-turbo decodes the region that an image needs (its functions
 * are passed in, so that nothing is linked); the resize is antialiased bilinear with the weights,
 * the fixed-point precision and the order of torch's uint8 kernel, and its result is the same to
 * the bit. Compiled by native.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

typedef struct { int x, y, w, h; } Region; /* tjregion */

typedef struct {
  void *(*init)(int);
  void (*destroy)(void *);
  int (*get)(void *, int);
  int (*header)(void *, const uint8_t *, size_t);
  int (*set_region)(void *, Region);
  int (*decompress)(void *, const uint8_t *, size_t, uint8_t *, int, int);
} TurboJpeg;

enum { INIT_DECOMPRESS = 1, FORMAT_RGB = 0, SUBSAMPLING = 4, WIDTH = 5, HEIGHT = 6, COLORSPACE = 8 };
enum { DONE = 0, REFUSED = 1, NO_MEMORY = 2, UNREADABLE = 3 };

/* One image; native.py has the same as a NumPy dtype. */
typedef struct {
  uint64_t offset, size;             /* of the JPEG, in the file */
  int32_t image_h, image_w;          /* as the index has them */
  int32_t top, left, height, width;  /* the crop */
  int32_t new_h, new_w;              /* what the crop is resized to */
  int32_t out_top, out_left;         /* the px x px window of it that is wanted */
  uint64_t out;
  int32_t status, file;
} Job;

typedef struct { int start, count; } Span;

/* What makes one axis: where each output reads, with which weights of how many bits. */
typedef struct {
  Span *spans;
  int16_t *weights;
  double *exact;
  int taps, bits, first, end; /* [first, end): all that is read of the input */
  size_t room;
} Axis;

typedef struct {
  TurboJpeg turbo;
  void *handle;
  uint8_t *jpeg, *pixels, *rows;
  size_t jpeg_room, pixels_room, rows_room;
  Axis x, y;
} Decoder;

enum { SLACK = 64 }; /* bytes that vector loads may read beyond the end */

static int grow(uint8_t **buffer, size_t *room, size_t needed) {
  if (needed + SLACK <= *room) return 1;
  free(*buffer);
  *room = 0;
  *buffer = malloc(needed + SLACK);
  if (!*buffer) return 0;
  memset(*buffer, 0, needed + SLACK);
  *room = needed + SLACK;
  return 1;
}

static int make_room(Axis *axis, int outputs, int taps) {
  size_t needed = (size_t)(outputs + 1) * taps;
  if (needed > axis->room) {
    free(axis->weights), free(axis->exact), free(axis->spans);
    axis->weights = malloc(needed * sizeof(int16_t));
    axis->exact = malloc(needed * sizeof(double));
    axis->spans = malloc(needed * sizeof(Span));
    axis->room = needed;
    if (!axis->weights || !axis->exact || !axis->spans) {
      axis->room = 0;
      return 0;
    }
  }
  axis->taps = taps;
  return 1;
}

/* Outputs [skip, skip + count) of an axis resized from n_in to n_out. */
static int plan(Axis *axis, int n_in, int n_out, int skip, int count) {
  double scale = (double)n_in / n_out, support = scale > 1 ? scale : 1, inverse = 1 / support;
  if (!make_room(axis, count, 2 * (int)(support + 2) + 2)) return 0;
  double largest = 0;
  int taps = axis->taps;
  for (int i = 0; i < n_out; i++) { /* all of them: the precision is that of the largest weight */
    int wanted = i >= skip && i < skip + count;
    double *row = axis->exact + (size_t)(wanted ? i - skip : count) * taps;
    double centre = scale * (i + 0.5), total = 0;
    int start = (int)(centre - support + 0.5), end = (int)(centre + support + 0.5);
    if (start < 0) start = 0;
    if (end > n_in) end = n_in;
    for (int j = 0; j < end - start; j++) {
      double distance = (j + start - centre + 0.5) * inverse;
      if (distance < 0) distance = -distance;
      row[j] = distance < 1 ? 1 - distance : 0;
      total += row[j];
    }
    for (int j = 0; j < end - start; j++) {
      row[j] /= total;
      if (row[j] > largest) largest = row[j];
    }
    if (wanted) axis->spans[i - skip] = (Span){start, end - start};
  }
  int bits = 0;
  while (bits < 22 && (int)(0.5 + largest * (1 << (bits + 1))) < (1 << 15)) bits++;
  axis->bits = bits;
  for (int i = 0; i < count; i++)
    for (int j = 0; j < taps; j++) {
      size_t at = (size_t)i * taps + j;
      axis->weights[at] =
          j < axis->spans[i].count ? (int16_t)(0.5 + axis->exact[at] * (1 << bits)) : 0;
    }
  axis->first = axis->spans[0].start;
  axis->end = axis->spans[count - 1].start + axis->spans[count - 1].count;
  for (int i = 0; i < count; i++) axis->spans[i].start -= axis->first;
  return 1;
}

#if defined(__AVX2__)
static inline __m256i two_rows(const uint8_t *a, const uint8_t *b) {
  __m128i low = _mm_loadl_epi64((const __m128i *)a), high = _mm_loadl_epi64((const __m128i *)b);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

static inline __m256i two_weights(const int16_t *weights) {
  int32_t both;
  memcpy(&both, weights, sizeof both);
  return _mm256_set1_epi32(both);
}

static inline void put_pixel(uint8_t *out, __m128i pixel) { /* and one byte of the row's padding */
  int32_t value = _mm_cvtsi128_si32(pixel);
  memcpy(out, &value, sizeof value);
}

/* Two neighbours of each colour side by side, as 16-bit numbers, in either half. */
#define NEIGHBOURS                                                                              \
  _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, 0, -1, 3, -1, 1, \
                   -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1)

static int four_rows_at_a_time(const uint8_t *in, size_t stride, int rows, const Axis *axis,
                               int count, uint8_t *out, size_t out_stride) {
  const __m256i order = NEIGHBOURS, half = _mm256_set1_epi32(1 << (axis->bits - 1));
  const __m128i shift = _mm_cvtsi32_si128(axis->bits);
  int y = 0;
  for (; y + 4 <= rows; y += 4) {
    uint8_t *o = out + y * out_stride;
    for (int i = 0; i < count; i++, o += 3) {
      const uint8_t *p = in + y * stride + (size_t)axis->spans[i].start * 3;
      const int16_t *w = axis->weights + (size_t)i * axis->taps;
      __m256i a = half, b = half;
      /* Of an odd number of taps, the last has a neighbour of weight zero. */
      for (int j = 0; j < axis->spans[i].count; j += 2, p += 6) {
        __m256i weights = two_weights(w + j);
        __m256i upper = _mm256_shuffle_epi8(two_rows(p, p + stride), order);
        __m256i lower = _mm256_shuffle_epi8(two_rows(p + 2 * stride, p + 3 * stride), order);
        a = _mm256_add_epi32(a, _mm256_madd_epi16(upper, weights));
        b = _mm256_add_epi32(b, _mm256_madd_epi16(lower, weights));
      }
      a = _mm256_packs_epi32(_mm256_sra_epi32(a, shift), _mm256_sra_epi32(b, shift));
      a = _mm256_packus_epi16(a, a);
      __m128i even = _mm256_castsi256_si128(a), odd = _mm256_extracti128_si256(a, 1);
      put_pixel(o, even);
      put_pixel(o + out_stride, odd);
      put_pixel(o + 2 * out_stride, _mm_srli_si128(even, 4));
      put_pixel(o + 3 * out_stride, _mm_srli_si128(odd, 4));
    }
  }
  return y;
}

static int bytes_32_at_a_time(const uint8_t *in, size_t stride, const int16_t *w, int taps,
                              int bits, int width, uint8_t *out) {
  const __m128i shift = _mm_cvtsi32_si128(bits);
  const __m256i half = _mm256_set1_epi32(1 << (bits - 1));
  int x = 0;
  for (; x + 32 <= width; x += 32) {
    const uint8_t *p = in + x;
    __m256i a = half, b = half, c = half, d = half;
    for (int j = 0; j < taps; j += 2, p += 2 * stride) {
      const uint8_t *q = j + 1 < taps ? p + stride : p; /* else its weight is zero */
      __m256i weights = two_weights(w + j);
      __m128i p0 = _mm_loadu_si128((const __m128i *)p), q0 = _mm_loadu_si128((const __m128i *)q);
      __m128i p1 = _mm_loadu_si128((const __m128i *)(p + 16));
      __m128i q1 = _mm_loadu_si128((const __m128i *)(q + 16));
#define ADD(sum, pairs) \
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_cvtepu8_epi16(pairs), weights))
      ADD(a, _mm_unpacklo_epi8(p0, q0));
      ADD(b, _mm_unpackhi_epi8(p0, q0));
      ADD(c, _mm_unpacklo_epi8(p1, q1));
      ADD(d, _mm_unpackhi_epi8(p1, q1));
#undef ADD
    }
    a = _mm256_packs_epi32(_mm256_sra_epi32(a, shift), _mm256_sra_epi32(b, shift));
    c = _mm256_packs_epi32(_mm256_sra_epi32(c, shift), _mm256_sra_epi32(d, shift));
    a = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, c),
                                    _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(out + x), a);
  }
  return x;
}
#endif

static void resize_rows(const uint8_t *in, size_t stride, int rows, const Axis *axis, int count,
                        uint8_t *out, size_t out_stride) {
  int y = 0;
#if defined(__AVX2__)
  y = four_rows_at_a_time(in, stride, rows, axis, count, out, out_stride);
#endif
  for (; y < rows; y++)
    for (int i = 0; i < count; i++) {
      const uint8_t *p = in + y * stride + (size_t)axis->spans[i].start * 3;
      const int16_t *w = axis->weights + (size_t)i * axis->taps;
      int32_t r = 1 << (axis->bits - 1), g = r, b = r;
      for (int j = 0; j < axis->spans[i].count; j++, p += 3) {
        r += p[0] * w[j], g += p[1] * w[j], b += p[2] * w[j];
      }
      uint8_t *o = out + y * out_stride + (size_t)i * 3;
      o[0] = r >> axis->bits, o[1] = g >> axis->bits, o[2] = b >> axis->bits;
    }
}

static void resize_columns(const uint8_t *in, size_t stride, int width, const Axis *axis,
                           int count, uint8_t *out) {
  for (int i = 0; i < count; i++, out += width) {
    const uint8_t *p = in + axis->spans[i].start * stride;
    const int16_t *w = axis->weights + (size_t)i * axis->taps;
    int taps = axis->spans[i].count, x = 0;
#if defined(__AVX2__)
    x = bytes_32_at_a_time(p, stride, w, taps, axis->bits, width, out);
#endif
    for (; x < width; x++) {
      int32_t sum = 1 << (axis->bits - 1);
      for (int j = 0; j < taps; j++) sum += p[j * stride + x] * w[j];
      out[x] = sum >> axis->bits;
    }
  }
}

/* The columns to decode, on block borders. One block more on either side keeps the upsampling of
 * colour, which reads its neighbours, equal to that of a full decode. */
static void columns(int subsampling, int left, int width, int image_w, int *start, int *count) {
  static const int block_widths[] = {8, 16, 16, 8, 8, 32, 8}; /* by TJSAMP */
  if (subsampling < 0 || subsampling > 6) {
    *start = 0, *count = image_w;
    return;
  }
  int block = block_widths[subsampling];
  *start = (left / block - 1) * block;
  if (*start < 0) *start = 0;
  int end = ((left + width + block - 1) / block + 1) * block;
  *count = (end < image_w ? end : image_w) - *start;
}

/* Not mapped: a file that is cut short while it is mapped ends the process. */
static int read_all(int file, uint64_t offset, uint8_t *to, size_t size) {
  while (size) {
    ssize_t got = pread(file, to, size, (off_t)offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return 0;
    to += got, offset += (uint64_t)got, size -= (size_t)got;
  }
  return 1;
}

static int decode_one(Decoder *d, Job *job, int px) {
  const TurboJpeg *t = &d->turbo;
  uint8_t *out = (uint8_t *)(uintptr_t)job->out;
  if (!d->handle || !grow(&d->jpeg, &d->jpeg_room, job->size)) return NO_MEMORY;
  const uint8_t *jpeg = d->jpeg;
  if (!read_all(job->file, job->offset, d->jpeg, job->size)) return UNREADABLE;
  if (t->header(d->handle, jpeg, job->size)) return REFUSED;
  int colours = t->get(d->handle, COLORSPACE);
  if (colours == 3 || colours == 4) return REFUSED; /* CMYK, YCCK */
  if (t->get(d->handle, WIDTH) != job->image_w || t->get(d->handle, HEIGHT) != job->image_h)
    return REFUSED;
  if (px) {
    if (!plan(&d->x, job->width, job->new_w, job->out_left, px)) return NO_MEMORY;
    if (!plan(&d->y, job->height, job->new_h, job->out_top, px)) return NO_MEMORY;
  } else {
    d->x.first = d->y.first = 0, d->x.end = job->width, d->y.end = job->height;
  }
  int top = job->top + d->y.first, rows = d->y.end - d->y.first;
  int left = job->left + d->x.first, width = d->x.end - d->x.first, x, w;
  columns(t->get(d->handle, SUBSAMPLING), left, width, job->image_w, &x, &w);
  if (t->set_region(d->handle, (Region){x, top, w, rows})) return REFUSED;
  size_t stride = (size_t)w * 3, row = (size_t)px * 3, padded = row + SLACK;
  if (!grow(&d->pixels, &d->pixels_room, stride * rows)) return NO_MEMORY;
  if (!grow(&d->rows, &d->rows_room, padded * rows)) return NO_MEMORY;
  if (t->decompress(d->handle, jpeg, job->size, d->pixels, (int)stride, FORMAT_RGB))
    return REFUSED;
  if (!px) return DONE;
  const uint8_t *in = d->pixels + (size_t)(left - x) * 3;
  if (job->new_w != job->width) {
    resize_rows(in, stride, rows, &d->x, px, d->rows, padded);
    in = d->rows, stride = padded;
  }
  if (job->new_h != job->height)
    resize_columns(in, stride, (int)row, &d->y, px, out);
  else
    for (int y = 0; y < px; y++) memcpy(out + y * row, in + y * stride, row);
  return DONE;
}

void rn50_decoder_free(Decoder *d) {
  if (!d) return;
  if (d->handle) d->turbo.destroy(d->handle);
  Axis *axes[] = {&d->x, &d->y};
  for (int i = 0; i < 2; i++) free(axes[i]->weights), free(axes[i]->exact), free(axes[i]->spans);
  free(d->jpeg), free(d->pixels), free(d->rows), free(d);
}

Decoder *rn50_decoder_new(const TurboJpeg *functions) {
  Decoder *d = calloc(1, sizeof *d);
  if (!d) return NULL;
  d->turbo = *functions;
  d->handle = d->turbo.init(INIT_DECOMPRESS);
  if (!d->handle) {
    rn50_decoder_free(d);
    return NULL;
  }
  return d;
}

/* Decode every job; each one's status says how it went. Returns how many did not succeed.
 * With px = 0, crops are decoded and nothing is written: the least that any loader must do. */
int rn50_decode(Decoder *d, Job *jobs, int count, int px) {
  int failed = 0;
  for (int i = 0; i < count; i++) {
    jobs[i].status = decode_one(d, &jobs[i], px);
    if (jobs[i].status == DONE) continue;
    failed++;
    /* libjpeg-turbo 2.1.92 stays in the middle of a header that was damaged. */
    if (d->handle) d->turbo.destroy(d->handle);
    d->handle = d->turbo.init(INIT_DECOMPRESS);
  }
  return failed;
}

/* Ask for images that will be decoded soon, so that a cold disk reads ahead. */
void rn50_read_ahead(const Job *jobs, int count) {
  for (int i = 0; i < count; i++) {
#if defined(__APPLE__)
    struct radvisory wanted = {(off_t)jobs[i].offset, (int)jobs[i].size};
    fcntl(jobs[i].file, F_RDADVISE, &wanted);
#else
    posix_fadvise(jobs[i].file, (off_t)jobs[i].offset, (off_t)jobs[i].size, POSIX_FADV_WILLNEED);
#endif
  }
}

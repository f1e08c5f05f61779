/* What a kernel runs on that ptx_machine.py has translated from PTX to C: threads, memory, and the rules of both.

   The threads of a block have stacks of their own and run one after the other, each until it waits: at a barrier for
   the block, at an instruction of a warp for the 32 lanes. Blocks run one after the other. A kernel defines `kernel`,
   STATIC_BYTES, STACK_BYTES and BLOCKS (of its instructions, which are counted in `hits`). */

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

typedef union {
    uint8_t pred;
    uint8_t u8, b8; int8_t s8;
    uint16_t u16, b16, f16, bf16; int16_t s16;
    uint32_t u32, b32, f16x2, bf16x2, tf32; int32_t s32; float f32;
    uint64_t u64, b64; int64_t s64; double f64;
} Register;

typedef struct { uint64_t base, size; int32_t written; uint32_t *owner; } Array;
typedef struct { uint64_t address; uint32_t block, thread, line, size, is_shared; } Access;
typedef struct { unsigned to, size, count, group; uint64_t from; int line; } Copy;
/* Of a byte of shared memory: the intervals between barriers in which it was last written and read, and by whom. */
typedef struct { uint32_t written, read; uint16_t writer, reader, copies; } Shadow;

enum { RUNS, AT_WARP, AT_BARRIER, DONE };
enum { SHARED_BASE = 1024, MANY = 0xffff, MOST_COPIES = 512, LANES = 32 };
typedef struct Thread {
    ucontext_t context;
    unsigned number, groups, copies;
    int state, line;
    void *operands;
    void (*together)(struct Thread *lanes);
    Copy copy[MOST_COPIES];
} Thread;

static void kernel(void);
long hits[BLOCKS];
Access *accesses;
long access_count;

static ucontext_t scheduler;
static Thread *threads, *me;
static const uint64_t *parameters;
static Array *arrays;
static int array_count, is_early, is_logged, failed_line;
static unsigned grid, block, block_size, dynamic_bytes, shared_bytes, interval;
static char *memory, *failure;
static Shadow *shadow;

/* ------------------------------------------------------------------------------------------------ threads */

static void failed(int line, unsigned thread, const char *format, ...) {
    va_list values;
    int n = snprintf(failure, 400, "block %u, thread %u: ", block, thread);
    va_start(values, format);
    vsnprintf(failure + n, 400 - n, format, values);
    va_end(values);
    failed_line = line;
}

static void pause_thread(int state, int line) {
    me->state = state;
    me->line = line;
    swapcontext(&me->context, &scheduler);
}

#define FAIL(line, ...) do { failed(line, me->number, __VA_ARGS__); pause_thread(DONE, line); } while (0)

static void barrier(int line) { pause_thread(AT_BARRIER, line); }

static void warp(int line, void *operands, void (*together)(Thread *)) {
    me->operands = operands;
    me->together = together;
    pause_thread(AT_WARP, line);
}

static void start_thread(void) {
    kernel();
    me->state = DONE;
}

/* Whether all of `count` threads wait at the same point; where, and for what, is that of the first. */
static int are_together(Thread *first, unsigned count) {
    for (unsigned i = 1; i < count; i++)
        if (first[i].state != first->state || (first->state != DONE && first[i].line != first->line)) {
            int is_first = first->state != DONE;
            failed(is_first ? first->line : first[i].line, is_first ? first->number : first[i].number,
                   "waits here, but thread %u %s", is_first ? first[i].number : first->number,
                   (is_first ? first[i].state : first->state) == DONE ? "has ended" : "waits elsewhere");
            return 0;
        }
    return 1;
}

static void run_warp(Thread *lanes, unsigned count) {
    do {
        for (unsigned i = 0; i < count && !failed_line; i++) {
            me = lanes + i;
            me->state = RUNS;
            swapcontext(&scheduler, &me->context);
        }
        if (failed_line || !are_together(lanes, count)) return;
        if (lanes->state == AT_WARP) {
            if (count < LANES) { failed(lanes->line, lanes->number, "its warp has only %u lanes", count); return; }
            lanes->together(lanes);
        }
    } while (lanes->state == AT_WARP);
}

static void run_block(char *stacks) {
    for (unsigned i = 0; i < block_size; i++) {
        Thread *t = threads + i;
        t->number = i;
        t->groups = t->copies = 0;
        getcontext(&t->context);
        t->context.uc_stack.ss_sp = stacks + (size_t)i * STACK_BYTES;
        t->context.uc_stack.ss_size = STACK_BYTES;
        t->context.uc_link = &scheduler;
        makecontext(&t->context, start_thread, 0);
    }
    memset(shadow, 0, shared_bytes * sizeof(Shadow));
    memset(memory, 0xff, shared_bytes);
    interval = 0;
    do {
        interval += 1;
        for (unsigned i = 0; i < block_size && !failed_line; i += LANES)
            run_warp(threads + i, block_size - i < LANES ? block_size - i : LANES);
        if (failed_line || !are_together(threads, block_size)) return;
    } while (threads->state == AT_BARRIER);
}

/* 0, or the line of the PTX that did what it must not, and in `message` what that was. */
int launch(const uint64_t *given, Array *of, int count, unsigned blocks, unsigned size, unsigned dynamic, int early,
           int logged, char *message) {
    parameters = given, arrays = of, array_count = count, grid = blocks, block_size = size, dynamic_bytes = dynamic;
    is_early = early, is_logged = logged, failure = message, failed_line = 0, access_count = 0;
    memset(hits, 0, sizeof hits);
    shared_bytes = STATIC_BYTES + dynamic;
    threads = calloc(size, sizeof(Thread));
    shadow = malloc((shared_bytes + 1) * sizeof(Shadow));
    memory = aligned_alloc(1024, (shared_bytes + 1024) / 1024 * 1024);
    char *stacks = malloc((size_t)size * STACK_BYTES);
    for (int i = 0; i < count; i++) of[i].owner = of[i].written ? calloc(of[i].size + 1, sizeof(uint32_t)) : NULL;
    for (block = 0; block < blocks && !failed_line; block++) run_block(stacks);
    for (int i = 0; i < count; i++) free(of[i].owner);
    free(stacks), free(memory), free(shadow), free(threads);
    return failed_line;
}

/* ------------------------------------------------------------------------------------------------- memory */

static void note(uint64_t address, unsigned size, int line, int is_shared) {
    if (!is_logged) return;
    if (!(access_count & (access_count - 1))) /* at powers of two, there is no room left */
        accesses = realloc(accesses, (access_count ? 2 * access_count : 1) * sizeof(Access));
    accesses[access_count++] = (Access){address, block, me->number, line, size, is_shared};
}

void forget(void) { free(accesses); accesses = NULL; }

/* The bytes of registered arrays at an address. What a launch writes has one thread that writes and reads it, or is
   added to atomically. */
enum { READS, WRITES, ADDS };
static void *global_part(uint64_t address, unsigned size, int line, int how) {
    uint32_t self = how == ADDS ? 0xffffffff : block * 1024 + me->number + 1;
    note(address, size, line, 0);
    for (int n = 0; n < array_count; n++) {
        uint64_t first = address - arrays[n].base;
        if (first >= arrays[n].size || size > arrays[n].size - first) continue;
        if (how != READS && !arrays[n].written) FAIL(line, "write into array %d, which is only read", n);
        for (unsigned i = 0; i < size && arrays[n].owner; i++) {
            uint32_t *owner = arrays[n].owner + first + i;
            if (*owner && *owner != self) FAIL(line, "race: another thread wrote byte %lu of array %d", first + i, n);
            if (how != READS) *owner = self;
        }
        return (void *)address;
    }
    FAIL(line, "%u bytes of global memory outside of all arrays", size);
    return NULL;
}

static void *global(uint64_t address, unsigned size, int line, int how) {
    if (address % size) FAIL(line, "%u bytes of global memory at a misaligned address", size);
    return global_part(address, size, line, how);
}

/* The bytes of shared memory at an address, which nobody else uses between the same two barriers if one of both writes. */
static void *shared_part(uint64_t address, unsigned size, int line, int how) {
    uint64_t first = address - SHARED_BASE;
    if (address % size) FAIL(line, "%u bytes of shared memory at a misaligned address", size);
    if (first >= shared_bytes || size > shared_bytes - first) FAIL(line, "outside of shared memory: byte %ld", first);
    for (Shadow *s = shadow + first; s < shadow + first + size; s++) {
        if (s->copies) FAIL(line, "byte %ld of shared memory is the target of a copy under way", s - shadow);
        if (s->written == interval && s->writer != me->number)
            FAIL(line, "race: thread %u wrote byte %ld of shared memory", s->writer, s - shadow);
        if (how == WRITES) {
            if (s->read == interval && s->reader != me->number)
                FAIL(line, "race: another thread read byte %ld of shared memory", s - shadow);
            s->written = interval, s->writer = me->number;
        } else {
            if (!s->written) FAIL(line, "byte %ld of shared memory was never written", s - shadow);
            s->reader = s->read == interval && s->reader != me->number ? MANY : me->number;
            s->read = interval;
        }
    }
    return memory + first;
}

static void *shared(uint64_t address, unsigned size, int line, int how) {
    note(address, size, line, 1);
    return shared_part(address, size, line, how);
}

static void copy_now(const Copy *c) {
    memset(memory + c->to, 0, c->size);
    memcpy(memory + c->to, (void *)c->from, c->count);
}

/* Nobody may touch the target of a copy from here until the thread has waited for it. */
static void begin_copy(uint64_t to, uint64_t from, unsigned size, unsigned count, int line) {
    if (from % size || count > size) FAIL(line, "copy of %u of %u bytes from %lx", count, size, from);
    if (count) global_part(from, count, line, READS);
    unsigned first = (char *)shared(to, size, line, WRITES) - memory;
    if (me->copies == MOST_COPIES) FAIL(line, "more than %d copies under way", MOST_COPIES);
    Copy *c = me->copy + me->copies++;
    *c = (Copy){first, size, count, me->groups, from, line};
    for (unsigned i = 0; i < size; i++) shadow[first + i].copies = 1;
    if (is_early) copy_now(c);
}

/* All copies of the groups before `end` are done, and seen by this thread. */
static void end_copies(unsigned end) {
    unsigned left = 0;
    for (Copy *c = me->copy; c < me->copy + me->copies; c++)
        if ((int)(c->group - end) < 0) {
            for (unsigned i = 0; i < c->size; i++) shadow[c->to + i].copies = 0;
            shared_part(SHARED_BASE + c->to, c->size, c->line, WRITES);
            if (!is_early) copy_now(c);
        } else me->copy[left++] = *c;
    me->copies = left;
}

static void commit_group(void) { me->groups += 1; }
static void wait_group(unsigned last) { end_copies(me->groups - last); }
static void wait_all(void) { commit_group(); wait_group(0); }

/* ------------------------------------------------------------------------------------------------ numbers */

static float float_of(uint32_t bits) { return (Register){.u32 = bits}.f32; }
static double double_of(uint64_t bits) { return (Register){.u64 = bits}.f64; }
static uint32_t bits_of(float value) { return (Register){.f32 = value}.u32; }

static float from_f16(uint16_t bits) {
    int exponent = bits >> 10 & 31, rest = bits & 1023;
    float size = exponent == 31 ? (rest ? NAN : INFINITY) : ldexpf(exponent ? 1024 + rest : rest, (exponent ? exponent : 1) - 25);
    return copysignf(size, bits >> 15 ? -1 : 1);
}

static uint16_t to_f16(float value) {
    float size = fabsf(value);
    if (isnan(value)) return 0x7fff;
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    if (size >= 65520) return sign | 0x7c00;
    int exponent = size < 0x1p-14f ? -24 : ilogbf(size) - 10;
    return sign | (uint16_t)(((exponent + 24) << 10) + (int)nearbyintf(ldexpf(size, -exponent)));
}

static float from_bf16(uint16_t bits) { return float_of((uint32_t)bits << 16); }

static uint16_t to_bf16(float value) {
    uint32_t bits = bits_of(value);
    return isnan(value) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static uint32_t round_tf32(float value) {
    return isnan(value) ? 0x7fffe000 : (bits_of(value) + 0x1000) & 0xffffe000;
}

/* Byte i of the result is byte c[i] % 8 of a and b, a first, or eight times its sign bit where c[i] > 7. */
static uint32_t permuted(uint32_t a, uint32_t b, uint32_t c) {
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
        int from = c >> 4 * i & 15;
        uint8_t byte = both >> 8 * (from & 7);
        result |= (uint32_t)(from & 8 ? (byte & 0x80 ? 0xff : 0) : byte) << 8 * i;
    }
    return result;
}

static uint32_t field(uint32_t value, uint32_t first, uint32_t bits) {
    first &= 255, bits &= 255;
    return first > 31 ? 0 : value >> first & (uint32_t)((1ull << (bits < 32 ? bits : 32)) - 1);
}

static uint32_t with_field(uint32_t part, uint32_t value, uint32_t first, uint32_t bits) {
    uint32_t mask = field(~0u, 0, bits);
    first &= 255;
    return first > 31 ? value : (value & ~(mask << first)) | (part & mask) << first;
}

#define DIVISION(name, type, least) \
    static type name(type a, type b, int is_rest, int line) { \
        if (!b) FAIL(line, "division by zero"); \
        if (b == (type)-1 && least && a == least) return is_rest ? 0 : a; \
        return is_rest ? a % b : a / b; \
    }
DIVISION(divide_s32, int32_t, INT32_MIN)
DIVISION(divide_s64, int64_t, INT64_MIN)
DIVISION(divide_u32, uint32_t, 0)
DIVISION(divide_u64, uint64_t, 0)

/* ----------------------------------------------------------------------------------------- of whole warps */

typedef struct { float d[4]; uint32_t a[4], b[2]; float c[4]; } Mma;

/* The manual's layout of fragments: lane = 4 * group + member holds a[row, step], b[step, column], c[row, column]. */
static void mma(Thread *lanes, int depth, double element(uint32_t, int)) {
    double a[16][16], b[16][8];
    int in_word = depth / 8, pairs = in_word - 1;
    for (int lane = 0; lane < LANES; lane++) {
        const Mma *m = lanes[lane].operands;
        int group = lane / 4, member = lane % 4;
        for (int i = 0; i < 4 * in_word; i++) {
            int word = i / in_word, part = i % in_word;
            int step = member * in_word + part, half = pairs ? 8 : 4;
            a[group + 8 * (word % 2)][step + half * (word / 2)] = element(m->a[word], part);
            if (word < 2) b[step + half * word][group] = element(m->b[word], part);
        }
    }
    for (int lane = 0; lane < LANES; lane++) {
        Mma *m = lanes[lane].operands;
        for (int i = 0; i < 4; i++) {
            double sum = m->c[i];
            for (int step = 0; step < depth; step++) sum += a[lane / 4 + 8 * (i / 2)][step] * b[step][lane % 4 * 2 + i % 2];
            m->d[i] = sum;
        }
    }
}

static double part_tf32(uint32_t word, int part) { (void)part; return float_of(word & 0xffffe000); }
static double part_f16(uint32_t word, int part) { return from_f16(word >> 16 * part); }
static double part_bf16(uint32_t word, int part) { return from_bf16(word >> 16 * part); }
static void mma_tf32(Thread *lanes) { mma(lanes, 8, part_tf32); }
static void mma_f16(Thread *lanes) { mma(lanes, 16, part_f16); }
static void mma_bf16(Thread *lanes) { mma(lanes, 16, part_bf16); }

typedef struct { double d[2], a[1], b[1], c[2]; } Mma64;

/* Lane 4 * group + member holds a[group, member], b[member, group] and c[group, 2 * member] and the next. */
static void mma_f64(Thread *lanes) {
    for (int lane = 0; lane < LANES; lane++) {
        Mma64 *m = lanes[lane].operands;
        for (int i = 0; i < 2; i++) {
            m->d[i] = m->c[i];
            for (int step = 0; step < 4; step++) {
                const Mma64 *a = lanes[lane / 4 * 4 + step].operands, *b = lanes[(lane % 4 * 2 + i) * 4 + step].operands;
                m->d[i] = fma(a->a[0], b->b[0], m->d[i]);
            }
        }
    }
}

typedef struct { uint32_t d[4]; uint16_t row[8]; int count, is_transposed; } Matrices;

/* Lane i holds row i % 8 of matrix i / 8, and gets two neighbours of row, or column, lane / 4 of each matrix. */
static void deal(Thread *lanes) {
    for (int lane = 0; lane < LANES; lane++) {
        Matrices *m = lanes[lane].operands;
        for (int n = 0; n < m->count; n++)
            for (int part = 0; part < 2; part++) {
                int row = lane / 4, column = lane % 4 * 2 + part;
                const Matrices *from = lanes[8 * n + (m->is_transposed ? column : row)].operands;
                uint32_t value = from->row[m->is_transposed ? row : column];
                m->d[n] = part ? m->d[n] | value << 16 : value;
            }
    }
}

static Matrices load_matrices(uint64_t address, int count, int is_transposed, int line) {
    Matrices m = {.count = count, .is_transposed = is_transposed};
    if ((int)me->number % LANES < 8 * count) memcpy(m.row, shared(address, 16, line, READS), 16);
    warp(line, &m, deal);
    return m;
}

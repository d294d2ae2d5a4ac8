// Emulates the tile instructions of Intel AMX (AMX-TILE, AMX-BF16, AMX-INT8) on x86-64 Linux, for tests.
//
// A processor without AMX raises #UD at a tile instruction, and Linux sends SIGILL. The handler here decodes the
// instruction, carries it out on a tile state of the thread's own, and goes on after it. Semantics and encodings are
// those of Intel's Software Developer's Manual, volume 2. What the manual answers with #UD or #GP ends the process with
// a message that says what was wrong; so does a start_row other than 0, which only an interrupted load needs.
// Any other illegal instruction reaches the handler that was there before.

#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <immintrin.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { NUM_TILES = 8, MAX_ROWS = 16, MAX_COLSB = 64, MAX_COLS = MAX_COLSB / 4 };
enum { NO_PREFIX, PREFIX_66, PREFIX_F3, PREFIX_F2 };  // VEX.pp

typedef union {
    uint8_t bytes[MAX_ROWS][MAX_COLSB];
    uint32_t words[MAX_ROWS][MAX_COLS];
    float floats[MAX_ROWS][MAX_COLS];
} Tile;

// What LDTILECFG reads and STTILECFG writes.
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t colsb[16];
    uint8_t rows[16];
} Config;

typedef struct {
    _Alignas(64) Tile tiles[NUM_TILES];
    Config config;  // palette 0: not configured
    const char *name;  // of the instruction in progress, for messages
    const uint8_t *address;
} State;

static _Thread_local State state;
static struct sigaction previous;
static long long num_products, num_rows, num_multiply_adds;

__attribute__((noreturn, cold, format(printf, 1, 2))) static void fail(const char *format, ...) {
    char message[512];
    Dl_info place = {0};
    dladdr(state.address, &place);
    int length = snprintf(message, sizeof message, "AMX emulator: %s at %s+0x%lx: ", state.name,
                          place.dli_fname ? place.dli_fname : "", (long)(state.address - (uint8_t *)place.dli_fbase));
    if (length > 400) length = 400;
    va_list arguments;
    va_start(arguments, format);
    length += vsnprintf(message + length, sizeof message - length - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof message - 2) length = sizeof message - 2;
    message[length] = '\n';
    if (write(STDERR_FILENO, message, length + 1)) {}
    abort();
}

// ---- The tile state

static void check_tile(unsigned tile) {
    if (tile >= NUM_TILES) fail("there is no tmm%u", tile);
    if (!state.config.palette) fail("tiles are not configured (no LDTILECFG on this thread, or a TILERELEASE since)");
    if (!state.config.rows[tile]) fail("tmm%u has no rows in the configuration", tile);
}

static void load_config(const Config *wanted) {
    Config config;
    memcpy(&config, wanted, sizeof config);
    if (config.palette > 1) fail("palette %d; there are 0 and 1", config.palette);
    if (config.palette == 0) memset(&config, 0, sizeof config);
    if (config.start_row) fail("start_row is %d; only 0 is emulated", config.start_row);
    for (int n = 0; n < (int)sizeof config.reserved; n++)
        if (config.reserved[n]) fail("reserved byte %d is not 0", n + 2);
    for (int n = 0; n < 16; n++) {
        int rows = config.rows[n], colsb = config.colsb[n];
        if (n >= NUM_TILES && (rows || colsb)) fail("tmm%d is configured; there are %d tiles", n, NUM_TILES);
        if (rows > MAX_ROWS) fail("rows of tmm%d: %d; at most %d", n, rows, MAX_ROWS);
        if (colsb > MAX_COLSB) fail("colsb of tmm%d: %d; at most %d", n, colsb, MAX_COLSB);
        if (!rows != !colsb) fail("tmm%d has %d rows and %d colsb; both or none are 0", n, rows, colsb);
    }
    state.config = config;
    memset(state.tiles, 0, sizeof state.tiles);
}

static void load_tile(unsigned tile, const uint8_t *memory, int64_t stride) {
    check_tile(tile);
    int rows = state.config.rows[tile], colsb = state.config.colsb[tile];
    memset(&state.tiles[tile], 0, sizeof(Tile));
    for (int m = 0; m < rows; m++) memcpy(state.tiles[tile].bytes[m], memory + m * stride, colsb);
}

static void store_tile(unsigned tile, uint8_t *memory, int64_t stride) {
    check_tile(tile);
    int rows = state.config.rows[tile], colsb = state.config.colsb[tile];
    for (int m = 0; m < rows; m++) memcpy(memory + m * stride, state.tiles[tile].bytes[m], colsb);
}

// ---- Products: C (M, N) += A (M, K) B (K, N), where K counts groups of 4 bytes: 2 bfloat16 or 4 int8.
//
// Loops run over all 16 columns, so that the compiler makes one vector of them; only the first N are written.

static float upper(uint32_t word) {
    union { uint32_t word; float value; } bits = {word & 0xffff0000};
    return bits.value;
}

// Not inlined, so that no operation is moved across the change of MXCSR in its caller.
__attribute__((noinline)) static void multiply_bf16(Tile *c, const Tile *a, const Tile *b, int M, int K, int N) {
    float b_even[MAX_ROWS][MAX_COLS], b_odd[MAX_ROWS][MAX_COLS];
    for (int k = 0; k < K; k++)
        for (int n = 0; n < MAX_COLS; n++) {
            b_even[k][n] = upper(b->words[k][n] << 16);
            b_odd[k][n] = upper(b->words[k][n]);
        }
    for (int m = 0; m < M; m++) {
        float even[MAX_COLS] = {0}, odd[MAX_COLS] = {0};
        for (int k = 0; k < K; k++) {
            float a_even = upper(a->words[m][k] << 16), a_odd = upper(a->words[m][k]);
            for (int n = 0; n < MAX_COLS; n++) even[n] = __builtin_fmaf(a_even, b_even[k][n], even[n]);
            for (int n = 0; n < MAX_COLS; n++) odd[n] = __builtin_fmaf(a_odd, b_odd[k][n], odd[n]);
        }
        for (int n = 0; n < MAX_COLS; n++) even[n] = c->floats[m][n] + (even[n] + odd[n]);
        memcpy(c->floats[m], even, 4 * N);
    }
}

static uint32_t widen(uint8_t byte, bool is_signed) { return is_signed ? (uint32_t)(int8_t)byte : byte; }

__attribute__((noinline)) static void multiply_int8(Tile *c, const Tile *a, const Tile *b, int M, int K, int N,
                                                    bool a_signed, bool b_signed) {
    // Unsigned, so that sums wrap around.
    uint32_t b_wide[MAX_ROWS][4][MAX_COLS];
    for (int k = 0; k < K; k++)
        for (int i = 0; i < 4; i++)
            for (int n = 0; n < MAX_COLS; n++) b_wide[k][i][n] = widen(b->words[k][n] >> 8 * i, b_signed);
    for (int m = 0; m < M; m++) {
        uint32_t sums[MAX_COLS];
        memcpy(sums, c->words[m], sizeof sums);
        for (int k = 0; k < K; k++)
            for (int i = 0; i < 4; i++) {
                uint32_t value = widen(a->words[m][k] >> 8 * i, a_signed);
                for (int n = 0; n < MAX_COLS; n++) sums[n] += value * b_wide[k][i][n];
            }
        memcpy(c->words[m], sums, 4 * N);
    }
}

static void multiply(unsigned c, unsigned a, unsigned b, bool is_bf16, bool a_signed, bool b_signed) {
    check_tile(c), check_tile(a), check_tile(b);
    if (c == a || c == b || a == b) fail("tmm%u, tmm%u, tmm%u: a tile occurs twice", c, a, b);
    const uint8_t *rows = state.config.rows;
    const uint16_t *colsb = state.config.colsb;
    const unsigned tiles[] = {c, a, b};
    for (int n = 0; n < 3; n++)
        if (colsb[tiles[n]] % 4) fail("colsb of tmm%u: %d; a multiple of 4 is needed", tiles[n], colsb[tiles[n]]);
    if (rows[c] != rows[a])
        fail("tmm%u (the result) has %d rows, tmm%u (the left factor) %d", c, rows[c], a, rows[a]);
    if (colsb[a] / 4 != rows[b])
        fail("tmm%u (the left factor) has %d colsb, tmm%u (the right one) %d rows, not a fourth", a, colsb[a], b, rows[b]);
    if (colsb[c] != colsb[b])
        fail("tmm%u (the result) has %d colsb, tmm%u (the right factor) %d", c, colsb[c], b, colsb[b]);
    int M = rows[c], K = rows[b], N = colsb[c] / 4;
    if (is_bf16) {
        // Denormals are zeros, whatever the program has set; the signal's return restores that.
        _mm_setcsr(0x1f80 | _MM_FLUSH_ZERO_ON | 0x40);
        multiply_bf16(&state.tiles[c], &state.tiles[a], &state.tiles[b], M, K, N);
        _mm_setcsr(0x1f80);
    } else {
        multiply_int8(&state.tiles[c], &state.tiles[a], &state.tiles[b], M, K, N, a_signed, b_signed);
    }
    __atomic_fetch_add(&num_products, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&num_rows, M, __ATOMIC_RELAXED);
    __atomic_fetch_add(&num_multiply_adds, (long long)M * N * K * (is_bf16 ? 2 : 4), __ATOMIC_RELAXED);
}

// ---- Decoding: [FS prefix] C4, two bytes of VEX, opcode, ModRM, [SIB], [displacement]

typedef struct {
    uint8_t *base;  // address and displacement
    int64_t stride;  // index << scale; 0 where there is no index
    const uint8_t *next;  // the instruction's end
} Operand;

static int64_t read_register(const greg_t *registers, unsigned number) {
    static const uint8_t places[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                       REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return registers[places[number]];
}

// The memory operand at `modrm`. x and b are the fourth bits of index and base.
static Operand decode_memory(const uint8_t *modrm, const greg_t *registers, unsigned x, unsigned b, bool fs) {
    unsigned mod = *modrm >> 6, base = *modrm & 7;
    const uint8_t *next = modrm + 1;
    Operand operand = {0};
    int64_t address = 0;
    bool has_sib = base == 4;
    if (has_sib) {
        unsigned index = (*next >> 3 & 7) | x << 3;
        if (index != 4) operand.stride = (int64_t)((uint64_t)read_register(registers, index) << (*next >> 6));
        base = *next++ & 7;
    }
    bool no_base = mod == 0 && base == 5;
    int32_t displacement = 0;
    if (mod == 1) {
        displacement = (int8_t)*next++;
    } else if (mod == 2 || no_base) {
        memcpy(&displacement, next, 4);
        next += 4;
    }
    if (!no_base) address = read_register(registers, base | b << 3);
    else if (!has_sib) address = (int64_t)next;  // relative to RIP
    if (fs) {
        int64_t thread;  // the first word of FS is its own address; the handler has the FS of its thread
        __asm__("mov %%fs:0, %0" : "=r"(thread));
        address += thread;
    }
    operand.base = (uint8_t *)(address + displacement);
    operand.next = next;
    return operand;
}

// Carries out the instruction at `at` and returns its end; NULL where it is none of AMX's.
static const uint8_t *execute(const uint8_t *at, const greg_t *registers) {
    state.address = at;
    bool fs = *at == 0x64;  // a thread_local configuration
    at += fs;
    if (at[0] != 0xc4 || (at[1] & 0x1f) != 2 || (at[2] & 0x84)) return NULL;  // VEX.128.0F38.W0
    unsigned opcode = at[3], prefix = at[2] & 3, vvvv = ~at[2] >> 3 & 15;
    unsigned r = !(at[1] & 0x80), x = !(at[1] & 0x40), b = !(at[1] & 0x20);  // VEX has them inverted
    const uint8_t *modrm = at + 4;
    if (opcode != 0x49 && opcode != 0x4b && opcode != 0x5c && opcode != 0x5e) return NULL;
    bool in_memory = *modrm < 0xc0;
    unsigned reg = *modrm >> 3 & 7, rm = *modrm & 7, tile = reg | r << 3;

    if (opcode == 0x5c || opcode == 0x5e) {
        static const char *const names[] = {"TDPBUUD", "TDPBUSD", "TDPBSUD", "TDPBSSD"};
        bool is_bf16 = opcode == 0x5c;
        if (in_memory || (is_bf16 && prefix != PREFIX_F3)) return NULL;
        state.name = is_bf16 ? "TDPBF16PS" : names[prefix];
        multiply(tile, rm | b << 3, vvvv, is_bf16, prefix == PREFIX_F3 || prefix == PREFIX_F2,
                 prefix == PREFIX_66 || prefix == PREFIX_F2);
        return modrm + 1;
    }
    if (vvvv) return NULL;
    if (opcode == 0x4b) {
        static const char *const names[] = {NULL, "TILELOADDT1", "TILESTORED", "TILELOADD"};
        if (!in_memory || rm != 4 || prefix == NO_PREFIX) return NULL;
        state.name = names[prefix];
        Operand operand = decode_memory(modrm, registers, x, b, fs);
        if (prefix == PREFIX_F3) store_tile(tile, operand.base, operand.stride);
        else load_tile(tile, operand.base, operand.stride);
        return operand.next;
    }
    if (in_memory) {
        if (reg != 0 || prefix > PREFIX_66) return NULL;
        state.name = prefix == PREFIX_66 ? "STTILECFG" : "LDTILECFG";
        Operand operand = decode_memory(modrm, registers, x, b, fs);
        uint8_t *memory = operand.base + operand.stride;  // an ordinary address, whose index is part of it
        if (prefix == PREFIX_66) memcpy(memory, &state.config, sizeof(Config));
        else load_config((const Config *)memory);
        return operand.next;
    }
    if (prefix == PREFIX_F2 && rm == 0) {
        state.name = "TILEZERO";
        check_tile(tile);
        memset(&state.tiles[tile], 0, sizeof(Tile));
        return modrm + 1;
    }
    if (prefix == NO_PREFIX && *modrm == 0xc0) {
        memset(&state.config, 0, sizeof(Config));
        memset(state.tiles, 0, sizeof state.tiles);
        return modrm + 1;
    }
    return NULL;
}

static void handle(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *at = (const uint8_t *)registers[REG_RIP], *next = execute(at, registers);
    if (!next) {
        sigaction(SIGILL, &previous, NULL);  // the instruction runs again, and is answered as before install()
        return;
    }
    // Tile instructions come in rows, and each spared signal is a microsecond.
    while (next) {
        registers[REG_RIP] = (greg_t)next;
        next = execute(next, registers);
    }
}

// ---- What tests call

static bool has_amx(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 22 & 13) != 13) return false;  // bf16, tile and int8
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low >> 17 & 3) == 3;
}

// Returns 0 where tiles are emulated from now on in all threads; 1 where the processor has them, and the process has got
// the system's permission to use them (it would run LDTILECFG itself without one, so that the two can't be mixed);
// -1 where neither is possible.
int install(void) {
    if (has_amx()) return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) ? -1 : 1;
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigemptyset(&action.sa_mask);
    return sigaction(SIGILL, &action, &previous) ? -1 : 0;
}

// Emulated TDP* instructions of all threads; the rows of their results; the multiply-adds in them. A full product has
// 16 rows, and 8192 (bfloat16) or 16384 (int8) multiply-adds.
long long tile_products(void) { return __atomic_load_n(&num_products, __ATOMIC_RELAXED); }
long long tile_rows(void) { return __atomic_load_n(&num_rows, __ATOMIC_RELAXED); }
long long tile_multiply_adds(void) { return __atomic_load_n(&num_multiply_adds, __ATOMIC_RELAXED); }

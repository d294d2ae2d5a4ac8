// Each tile instruction as a function, for test_amx_emulator.py. Compiled with -mamx-tile -mamx-bf16 -mamx-int8.

#include <immintrin.h>

typedef struct {
    unsigned char bytes[64];
} Config;

static const Config constant = {{1, [16] = 64, [18] = 8, [48] = 16, [49] = 3}};  // tmm0 16 x 64, tmm1 3 x 8
static _Thread_local Config of_thread __attribute__((tls_model("initial-exec")));

void load_config(const Config *config) { _tile_loadconfig(config); }
void load_config_of_array(const Config *configs, long n) { _tile_loadconfig(&configs[n]); }
void load_constant_config(void) { _tile_loadconfig(&constant); }
void load_config_of_thread(const Config *config) {
    of_thread = *config;
    __asm__ volatile("ldtilecfg %0" ::"m"(of_thread));
}
void load_config_by_index(const Config *config, long n) {
    __asm__ volatile("ldtilecfg (%0,%1,8)" ::"r"(config), "r"(8 * n) : "memory");
}
void store_config(Config *config) { _tile_storeconfig(config); }
void release(void) { _tile_release(); }

void load_0(const void *memory, long stride) { _tile_loadd(0, memory, stride); }
void load_1(const void *memory, long stride) { _tile_loadd(1, memory, stride); }
void load_2(const void *memory, long stride) { _tile_stream_loadd(2, memory, stride); }
void load_7(const void *memory, long stride) { _tile_loadd(7, memory, stride); }
void load_repeated(const void *row) { __asm__ volatile("tileloadd (%0), %%tmm0" ::"r"(row) : "memory"); }
void store_0(void *memory, long stride) { _tile_stored(0, memory, stride); }
void store_7(void *memory, long stride) { _tile_stored(7, memory, stride); }
void zero_0(void) { _tile_zero(0); }

void TDPBF16PS(void) { _tile_dpbf16ps(0, 1, 2); }
void TDPBSSD(void) { _tile_dpbssd(0, 1, 2); }
void TDPBSUD(void) { _tile_dpbsud(0, 1, 2); }
void TDPBUSD(void) { _tile_dpbusd(0, 1, 2); }
void TDPBUUD(void) { _tile_dpbuud(0, 1, 2); }

// By all eight tiles: 3 += 7 x 5.
void TDPBF16PS_375(const void *a, const void *b, float *c) {
    _tile_loadd(3, c, 64);
    _tile_loadd(7, a, 64);
    _tile_loadd(5, b, 64);
    _tile_dpbf16ps(3, 7, 5);
    _tile_stored(3, c, 64);
}

// What assemblers refuse: a ninth tile, and one tile as result and factor.
void zero_8(void) { __asm__ volatile(".byte 0xc4, 0x62, 0x7b, 0x49, 0xc0"); }
void TDPBF16PS_001(void) { __asm__ volatile(".byte 0xc4, 0xe2, 0x72, 0x5c, 0xc0"); }
void illegal(void) { __asm__ volatile("ud2"); }
// Of AMX-FP16, which is not emulated.
void TDPFP16PS(void) { __asm__ volatile(".byte 0xc4, 0xe2, 0x6b, 0x5c, 0xc1"); }

// A micro-kernel's inner loop, 2 x 2 tiles: c (2, 2, 16, 16) += a (2, 16, 32 * steps) b (2, 16 * steps, 32).
void kernel_2x2(const char *a, const char *b, float *c, long steps) {
    _tile_loadd(0, c, 64);
    _tile_loadd(1, c + 256, 64);
    _tile_loadd(2, c + 512, 64);
    _tile_loadd(3, c + 768, 64);
    for (long k = 0; k < steps; k++) {
        _tile_loadd(4, a + 64 * k, 64 * steps);
        _tile_loadd(5, a + 1024 * steps + 64 * k, 64 * steps);
        _tile_loadd(6, b + 1024 * k, 64);
        _tile_loadd(7, b + 1024 * (steps + k), 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, 64);
    _tile_stored(1, c + 256, 64);
    _tile_stored(2, c + 512, 64);
    _tile_stored(3, c + 768, 64);
}

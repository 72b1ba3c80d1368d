/* A CUDA driver without a GPU that knows contexts, versions and architectures.
 *
 * The environment sets STUB_DRIVER (12060) and STUB_SM (87). A module is loaded into a context that
 * is current in the calling thread, or not at all; PTX and machine code of another GPU are refused.
 * A launch runs the kernel, which is compiled in as C (KERNEL), over the grid it is given. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>

#define __global__
struct three { int x, y, z; };
static struct three blockIdx, blockDim, threadIdx;
#include KERNEL

enum { OK = 0, INVALID_VALUE = 1, INVALID_CONTEXT = 201, NO_BINARY = 209, BAD_PTX = 222,
       NOT_FOUND = 500 };
static int retained, context;
static __thread int *current;

static int variable(const char *name, int usual) {
    const char *text = getenv(name);
    return text ? atoi(text) : usual;
}
int cuInit(unsigned flags) { return flags ? INVALID_VALUE : OK; }
int cuDriverGetVersion(int *v) { *v = variable("STUB_DRIVER", 12060); return OK; }
int cuDeviceGetCount(int *n) { *n = 1; return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? 101 : OK; }
int cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, size, "Stub");
    return device ? 101 : OK;
}
int cuDeviceGetAttribute(int *v, int attribute, int device) {
    int sm = variable("STUB_SM", 87);
    *v = attribute == 75 ? sm / 10 : attribute == 76 ? sm % 10 : 0;
    return device ? 101 : OK;
}
int cuDevicePrimaryCtxRetain(int **c, int device) { ++retained; *c = &context; return OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { --retained; return OK; }
int cuCtxSetCurrent(int *c) { current = c; return OK; }
static int usable(void) { return current == &context && retained > 0; }
int cuModuleLoadData(int **module, const unsigned char *image) {
    uint32_t flags;
    if (!usable()) return INVALID_CONTEXT;
    if (memcmp(image, "\177ELF", 4)) return BAD_PTX;
    memcpy(&flags, image + 48, 4);
    if ((int)(flags >> 8 & 0xff) != variable("STUB_SM", 87)) return NO_BINARY;
    *module = &context;
    return OK;
}
int cuModuleGetFunction(int **function, int *module, const char *name) {
    *function = &context;
    return strcmp(name, "upsample_argmax") ? NOT_FOUND : OK;
}
int cuModuleUnload(int *module) { return usable() ? OK : INVALID_CONTEXT; }
int cuLaunchKernel(int *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **p, void **extra) {
    if (!usable()) return INVALID_CONTEXT;
    if (function != &context || bz != 1 || shared || extra) return INVALID_VALUE;
    blockDim.x = bx; blockDim.y = by; blockDim.z = bz;
    for (blockIdx.z = 0; blockIdx.z < (int)gz; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < (int)gy; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < (int)gx; ++blockIdx.x)
    for (threadIdx.y = 0; threadIdx.y < (int)by; ++threadIdx.y)
    for (threadIdx.x = 0; threadIdx.x < (int)bx; ++threadIdx.x)
        upsample_argmax(*(const float **)p[0], *(unsigned char **)p[1], *(int *)p[2], *(int *)p[3],
                        *(int *)p[4], *(int *)p[5], *(int *)p[6]);
    return OK;
}
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR"; return OK; }
int cuGetErrorString(int code, const char **text) { *text = "stub"; return OK; }
/* NVRTC asks for it, and goes without. */
int cuGetExportTable(const void **table, const void *id) { *table = 0; return INVALID_VALUE; }
int stub_retained(void) { return retained; }

/* How cuda-python finds functions. */
int cuGetProcAddress_v2(const char *name, void **found, int version, uint64_t flags, int *status) {
    char later[128];
    Dl_info self;
    dladdr((void *)cuInit, &self);
    void *library = dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    *found = 0;
    if (!strcmp(name, "cuGetProcAddress")) *found = (void *)cuGetProcAddress_v2;
    snprintf(later, sizeof later, "%s_v2", name);
    if (!*found) *found = dlsym(library, later);
    if (!*found) *found = dlsym(library, name);
    if (status) *status = *found ? 0 : 1;
    return *found ? OK : NOT_FOUND;
}
int cuGetProcAddress(const char *name, void **found, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, found, version, flags, 0);
}

/* A CUDA runtime without a GPU: device memory is the host's, streams run at once.
 *
 * Device addresses carry a tag, so that one that is cut to 32 bits, or a host's address in its
 * place, is an error and no luck. What is captured is recorded and runs when it is launched. The
 * variables named stub_ make it old, integrated or broken, and count what is not given back. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TAG ((uintptr_t)1 << 60)
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, OLD_DRIVER = 35, BAD_HANDLE = 400,
       NOT_CAPTURED = 900, INVALIDATED = 901 };

int stub_runtime = 12060, stub_driver = 12060, stub_integrated = 0;
int stub_fail_capture = 0, stub_dead_replay = 0;
int stub_memory, stub_pinned, stub_streams, stub_graphs, stub_launchables, stub_events;
static int clock_ms;

typedef void (*function)(void *);
typedef struct { void *to; const void *from; size_t size; function call; void *data; } node;
typedef struct { node nodes[64]; int count; } graph;
typedef struct { int magic; graph *capturing; } stream;

static int served(void) { return stub_runtime / 1000 <= stub_driver / 1000; }
static int is_device(const void *p) { return ((uintptr_t)p & TAG) != 0; }
void *stub_host(void *p) { return (void *)((uintptr_t)p & ~TAG); }
static void run(const node *n) {
    if (n->call) n->call(n->data); else memcpy(n->to, n->from, n->size);
}
static int enqueue(stream *s, node n) {
    if (!s || s->magic != 77) return BAD_HANDLE;
    if (s->capturing) s->capturing->nodes[s->capturing->count++] = n; else run(&n);
    return OK;
}
static node copy(void *to, const void *from, size_t size) {
    node n = {stub_host(to), stub_host((void *)from), size, 0, 0};
    return n;
}
static int right_way(const void *to, const void *from, int kind) {
    return kind == 1 ? is_device(to) && !is_device(from) : is_device(from) && !is_device(to);
}

const char *cudaGetErrorName(int code) {
    return code == OLD_DRIVER ? "cudaErrorInsufficientDriver" : code == OUT_OF_MEMORY
        ? "cudaErrorMemoryAllocation" : code == INVALIDATED ? "cudaErrorStreamCaptureInvalidated"
        : code == INVALID_VALUE ? "cudaErrorInvalidValue" : "cudaErrorOther";
}
int cudaRuntimeGetVersion(int *v) { *v = stub_runtime; return OK; }
int cudaGetDeviceCount(int *n) { *n = served(); return served() ? OK : OLD_DRIVER; }
int cudaDeviceGetAttribute(int *v, int attribute, int device) {
    if (attribute != 18 || device) return INVALID_VALUE;
    *v = stub_integrated;
    return OK;
}
int cudaMalloc(void **p, size_t size) {
    if (!served()) return OLD_DRIVER;
    if (size > ((size_t)1 << 40)) return OUT_OF_MEMORY;
    *p = (void *)((uintptr_t)malloc(size) | TAG);
    ++stub_memory;
    return OK;
}
int cudaFree(void *p) {
    if (!is_device(p)) return INVALID_VALUE;
    free(stub_host(p));
    --stub_memory;
    return OK;
}
int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    if (!right_way(to, from, kind)) return INVALID_VALUE;
    node n = copy(to, from, size);
    run(&n);
    return OK;
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *s) {
    return right_way(to, from, kind) ? enqueue(s, copy(to, from, size)) : INVALID_VALUE;
}
int cudaHostAlloc(void **p, size_t size, unsigned flags) {
    if (flags != 2) return INVALID_VALUE; /* mapped: the device may be asked for its address */
    *p = malloc(size);
    ++stub_pinned;
    return OK;
}
int cudaHostGetDevicePointer(void **p, void *host, unsigned flags) {
    if (is_device(host) || flags) return INVALID_VALUE;
    *p = (void *)((uintptr_t)host | TAG);
    return OK;
}
int cudaFreeHost(void *p) { free(p); --stub_pinned; return OK; }
int cudaStreamCreate(void **p) {
    stream *s = calloc(1, sizeof *s);
    s->magic = 77;
    *p = s;
    ++stub_streams;
    return OK;
}
int cudaStreamDestroy(stream *s) { s->magic = 0; free(s); --stub_streams; return OK; }
int cudaStreamSynchronize(stream *s) { return s->capturing ? NOT_CAPTURED : OK; }
int cudaLaunchHostFunc(stream *s, function call, void *data) {
    node n = {0, 0, 0, call, data};
    return enqueue(s, n);
}
int cudaStreamBeginCapture(stream *s, int mode) {
    if (mode != 2 || s->capturing) return INVALID_VALUE;
    s->capturing = calloc(1, sizeof(graph));
    ++stub_graphs;
    return OK;
}
int cudaGraphDestroy(graph *g) { free(g); --stub_graphs; return OK; }
int cudaStreamEndCapture(stream *s, graph **g) {
    if (!s->capturing) return NOT_CAPTURED;
    *g = s->capturing;
    s->capturing = 0;
    if (!stub_fail_capture) return OK;
    cudaGraphDestroy(*g);
    *g = 0;
    return INVALIDATED;
}
int cudaGraphInstantiateWithFlags(graph **p, graph *g, unsigned long long flags) {
    if (flags) return INVALID_VALUE;
    *p = malloc(sizeof *g);
    **p = *g;
    ++stub_launchables;
    return OK;
}
int cudaGraphLaunch(graph *g, stream *s) {
    if (!g || !s || s->magic != 77) return BAD_HANDLE;
    for (int i = 0; i < g->count && !stub_dead_replay; ++i) run(&g->nodes[i]);
    return OK;
}
int cudaGraphExecDestroy(graph *g) { free(g); --stub_launchables; return OK; }
int cudaEventCreate(int **e) { *e = calloc(1, sizeof **e); ++stub_events; return OK; }
int cudaEventRecord(int *e, stream *s) {
    if (!s || s->magic != 77) return BAD_HANDLE;
    *e = ++clock_ms; /* a millisecond passes from event to event */
    return OK;
}
int cudaEventElapsedTime(float *ms, int *from, int *to) {
    if (!*from || !*to) return BAD_HANDLE;
    *ms = (float)(*to - *from);
    return OK;
}
int cudaEventDestroy(int *e) { free(e); --stub_events; return OK; }

/* A stand-in for NVIDIA's driver library: memory of its GPU is the host's, and each launch is passed to a function of
   the test. It keeps a list of the calls and what is allocated. Built and used by test_cuda.py. */

#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Status;
typedef unsigned long long Address;
typedef void (*Launched)(const char *name, unsigned grid, unsigned block, unsigned shared, void *stream, void **arguments);

static char calls[1 << 16];
static long live;
static Status next_status;
static Launched launched;
static void *current;
static struct { char name[256]; char *code; } known[256];
static int kernels, running;
static struct { Address from; size_t size; } memory[4096]; /* of which those of no size are free */

void stand_in_launched(Launched function) { launched = function; }
const char *stand_in_calls(void) { return calls; }
void stand_in_forget(void) { calls[0] = 0; }
long stand_in_live(void) { return live; }
void stand_in_fail(Status status) { next_status = status; }
/* The PTX of the kernel that is launched, and the bytes of the allocation that an address is in, and where it begins. */
const char *stand_in_code(void) { return known[running].code; }
size_t stand_in_memory(Address *address) {
    for (int i = 0; i < 4096; i++)
        if (*address - memory[i].from < memory[i].size) { *address = memory[i].from; return memory[i].size; }
    return 0;
}

#define NOTE(...) do { size_t n = strlen(calls); snprintf(calls + n, sizeof calls - n, __VA_ARGS__); } while (0)
#define FAIL do { if (next_status) { Status s = next_status; next_status = 0; return s; } } while (0)

Status cuInit(unsigned flags) { return flags; }
Status cuDriverGetVersion(int *version) { *version = 13000; return 0; }
Status cuDeviceGetCount(int *count) { *count = 2; return 0; }
Status cuDeviceGet(int *device, int number) { *device = number; return 0; }
Status cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Stand-in %d", device); return 0; }
Status cuDeviceTotalMem_v2(size_t *size, int device) { *size = 1ul << (30 + device); return 0; }
Status cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1000 + device; /* 75, 76: the compute capability */
    return 0;
}
Status cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(size_t)(0x1000 + device); return 0; }
Status cuCtxGetCurrent(void **context) { *context = current; return 0; }
Status cuCtxPushCurrent_v2(void *context) { NOTE("push %lu\n", (size_t)context - 0x1000); current = context; return 0; }
Status cuCtxPopCurrent_v2(void **context) { NOTE("pop\n"); *context = current; current = NULL; return 0; }
Status cuCtxGetDevice(int *device) {
    if (!current) return 201; /* invalid context */
    *device = (int)((size_t)current - 0x1000);
    return 0;
}
Status cuPointerGetAttribute(void *data, int attribute, Address pointer) {
    *(int *)data = 0;
    return attribute == 9 && pointer ? 0 : 1; /* 9: the device ordinal */
}

Status cuPointerGetAttributes(unsigned count, int *attributes, void **data, Address pointer) {
    for (unsigned i = 0; i < count; i++) *(int *)data[i] = attributes[i] == 2 ? 2 : 0; /* 2: memory of a device */
    return pointer ? 0 : 1;
}

static Status reserve(Address *pointer, size_t size) {
    FAIL;
    *pointer = (Address)(size_t)aligned_alloc(256, (size + 255) / 256 * 256);
    memset((void *)(size_t)*pointer, 0xff, size);
    for (int i = 0; i < 4096; i++)
        if (!memory[i].size) { memory[i].from = *pointer, memory[i].size = size; break; }
    live += 1;
    return 0;
}
static Status release(Address pointer) {
    for (int i = 0; i < 4096; i++)
        if (memory[i].from == pointer) memory[i].size = 0;
    free((void *)(size_t)pointer);
    live -= 1;
    return 0;
}

Status cuMemAlloc_v2(Address *pointer, size_t size) { NOTE("alloc %zu\n", size); return reserve(pointer, size); }
Status cuMemFree_v2(Address pointer) { NOTE("free\n"); return release(pointer); }
Status cuMemAllocAsync(Address *pointer, size_t size, void *stream) {
    NOTE("alloc %zu on %lu\n", size, (size_t)stream);
    return reserve(pointer, size);
}
Status cuMemFreeAsync(Address pointer, void *stream) { NOTE("free on %lu\n", (size_t)stream); return release(pointer); }
Status cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t size, void *stream) {
    NOTE("in %zu on %lu\n", size, (size_t)stream);
    memcpy((void *)(size_t)to, from, size);
    return 0;
}
Status cuMemcpyDtoHAsync_v2(void *to, Address from, size_t size, void *stream) {
    NOTE("out %zu on %lu\n", size, (size_t)stream);
    memcpy(to, (void *)(size_t)from, size);
    return 0;
}
Status cuMemcpyDtoDAsync_v2(Address to, Address from, size_t size, void *stream) {
    NOTE("copy %zu on %lu\n", size, (size_t)stream);
    memcpy((void *)(size_t)to, (void *)(size_t)from, size);
    return 0;
}

Status cuStreamSynchronize(void *stream) { NOTE("wait %lu\n", (size_t)stream); return 0; }
Status cuStreamIsCapturing(void *stream, int *status) { *status = stream == (void *)99; return 0; }
Status cuEventCreate(void **event, unsigned flags) { *event = (void *)(size_t)(0x2000 + flags); return 0; }
Status cuEventRecord(void *event, void *stream) { (void)event; NOTE("record on %lu\n", (size_t)stream); return 0; }
Status cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    (void)event;
    NOTE("%lu follows\n", (size_t)stream);
    return flags;
}
Status cuEventDestroy_v2(void *event) { return event ? 0 : 1; }

Status cuLibraryLoadData(void **library, const void *code, void *o, void **v, unsigned n, void *p, void **w, unsigned m) {
    (void)o, (void)v, (void)p, (void)w;
    FAIL;
    *library = strdup(code); /* for as long as the process lives, as its kernels are */
    return strstr(code, ".entry") && !n && !m ? 0 : 218; /* invalid PTX */
}
Status cuLibraryGetKernel(void **kernel, void *library, const char *name) {
    snprintf(known[kernels].name, sizeof known[0].name, "%s", name);
    known[kernels].code = library;
    *kernel = (void *)(size_t)(0x3000 + kernels++);
    return 0;
}
Status cuKernelGetFunction(void **function, void *kernel) { *function = kernel; return 0; }
Status cuFuncSetAttribute(void *function, int attribute, int value) {
    NOTE("shared %d\n", value);
    return function && attribute == 8 ? 0 : 1; /* 8: the most dynamic shared memory */
}
Status cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void *stream, void **arguments, void **extra) {
    FAIL;
    if (gy * gz * by * bz != 1 || extra) return 1;
    NOTE("launch on %lu\n", (size_t)stream);
    running = (int)((size_t)function - 0x3000);
    if (launched) launched(known[running].name, gx, bx, shared, stream, arguments);
    return 0;
}

Status cuGetErrorName(Status status, const char **text) { (void)status; *text = "ERROR"; return 0; }
Status cuGetErrorString(Status status, const char **text) { (void)status; *text = "as the test wants it"; return 0; }

/* The newest form of a function is looked up by its first name. */
Status cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *found) {
    char newest[128];
    (void)version, (void)flags;
    snprintf(newest, sizeof newest, "%s_v2", name);
    if (!(*function = dlsym(RTLD_DEFAULT, newest))) *function = dlsym(RTLD_DEFAULT, name);
    Dl_info here, there;
    if (*function && dladdr((void *)cuInit, &here) && dladdr(*function, &there) && strcmp(here.dli_fname, there.dli_fname))
        *function = NULL;
    if (found) *found = *function ? 0 : 1;
    return 0;
}
Status cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}

/* The few functions of libnvidia-ml.so.1 that the suite asks for, of GPUs that are made up.

   The file that the environment variable NVML_STUB names is read at every call: lines of a key and a whole number.
     gpus                 how many GPUs there are (2)
     instances.D          into how many MIG instances the GPU D is split (0)
     total.D, reserved.D, free.D, processes.D, busy.D, millijoules.D     of the device D, 0 but for the last, which is
                          not supported unless given
     error.FUNCTION       the code with which FUNCTION fails
     error                the code with which every function fails
   GPUs are the devices 0 to 9; the instances of the GPU D are 10 (D + 1) and those that follow, at every other index.
   With -DOLD the newer functions are not in the library. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, VERSION_MISMATCH = 25 };

typedef int *Device;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned gpu, memory; } Utilisation;

static int devices[100];

static long long setting(const char *key, long long otherwise) {
    char name[128];
    long long value, found = otherwise;
    FILE *file = fopen(getenv("NVML_STUB"), "r");
    while (file && fscanf(file, "%127s %lld", name, &value) == 2)
        if (strcmp(name, key) == 0) found = value;
    if (file) fclose(file);
    return found;
}

static long long of(Device device, const char *what, long long otherwise) {
    char key[64];
    snprintf(key, sizeof key, "%s.%d", what, *device);
    return setting(key, otherwise);
}

static int failure(const char *function) {
    char key[128];
    snprintf(key, sizeof key, "error.%s", function);
    return (int)setting(key, setting("error", SUCCESS));
}

#define CHECK() do { int code = failure(__func__); if (code) return code; } while (0)

static int give(int number, Device *device) {
    devices[number] = number;
    *device = &devices[number];
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; CHECK(); return SUCCESS; }

const char *nvmlErrorString(int code) { (void)code; return "an error of the stub"; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    CHECK();
    snprintf(version, length, "999.1");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    CHECK();
    *count = (unsigned)setting("gpus", 2);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) { CHECK(); return give((int)index, device); }

int nvmlDeviceGetUUID(Device device, char *uuid, unsigned length) {
    CHECK();
    snprintf(uuid, length, "%s-0000000a-0000-0000-0000-%012d", *device < 10 ? "GPU" : "MIG", *device);
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(Device device, unsigned *count) {
    CHECK();
    *count = 2 * (unsigned)of(device, "instances", 0);
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device device, unsigned index, Device *instance) {
    CHECK();
    return index % 2 ? NOT_FOUND : give(10 * (*device + 1) + (int)index / 2, instance);
}

int nvmlDeviceGetMemoryInfo(Device device, Memory *memory) {
    CHECK();
    memory->total = (unsigned long long)of(device, "total", 0);
    memory->free = (unsigned long long)of(device, "free", 0);
    memory->used = memory->total - memory->free;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned *count, Process *processes) {
    CHECK();
    unsigned there = (unsigned)of(device, "processes", 0), room = *count;
    *count = there;
    if (there > room) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < there; i++) processes[i] = (Process){1000 + i, 0, 0, 0};
    return SUCCESS;
}

#ifndef OLD
int nvmlDeviceGetMemoryInfo_v2(Device device, MemoryV2 *memory) {
    CHECK();
    if (memory->version != (2 << 24 | sizeof *memory)) return VERSION_MISMATCH;
    memory->total = (unsigned long long)of(device, "total", 0);
    memory->reserved = (unsigned long long)of(device, "reserved", 0);
    memory->free = (unsigned long long)of(device, "free", 0);
    memory->used = memory->total - memory->free - memory->reserved;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(Device device, Utilisation *rates) {
    CHECK();
    if (*device >= 10) return NOT_SUPPORTED;
    rates->gpu = (unsigned)of(device, "busy", 0);
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(Device device, unsigned long long *millijoules) {
    CHECK();
    long long found = of(device, "millijoules", -1);
    *millijoules = (unsigned long long)found;
    return found < 0 ? NOT_SUPPORTED : SUCCESS;
}
#endif

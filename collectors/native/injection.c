/* What CUDA_INJECTION64_PATH names: the CUDA driver loads it into every process that uses it, and calls
 * InitializeInjection. It must load into any of them, so it has nothing of Python's; where an agent has opened a ring, its
 * library is there already, and begins. Not yet run on a GPU. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

__attribute__((visibility("default"))) int InitializeInjection(void) {
    const char *path = getenv("MOESCOPE_LIBRARY");
    void *library = path && *path ? dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD) : NULL;
    if (library) {
        void *symbol = dlsym(library, "moescope_device_injected");
        void (*begin)(void);
        memcpy(&begin, &symbol, sizeof begin);
        if (begin) begin();
        dlclose(library);
    }
    return 1;
}

/* The CUDA runtime and driver of a machine without a GPU: every call succeeds, memory is the host's, and no kernel
 * runs. */
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static int capturing;
static int some_handle;
#define HANDLE ((void*)&some_handle)
/* a function that does nothing, and one that stores one value; 0 is success */
#define SUCCEEDS(type, name, ...) \
  type name(__VA_ARGS__) { return 0; }
#define GIVES(type, name, pointer, value, ...) \
  type name(__VA_ARGS__) {                     \
    *pointer = value;                          \
    return 0;                                  \
  }

/* device */
GIVES(cudaError_t, cudaGetDeviceCount, count, 1, int* count)
GIVES(cudaError_t, cudaGetDevice, device, 0, int* device)
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
GIVES(cudaError_t, cudaDriverGetVersion, version, CUDART_VERSION, int* version)
GIVES(cudaError_t, cudaRuntimeGetVersion, version, CUDART_VERSION, int* version)
SUCCEEDS(cudaError_t, cudaDeviceSynchronize, void)
GIVES(cudaError_t, cudaDeviceCanAccessPeer, can, 0, int* can, int device, int peer)
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
SUCCEEDS(cudaError_t, cudaGetLastError, void)
SUCCEEDS(cudaError_t, cudaPeekAtLastError, void)
const char* cudaGetErrorString(cudaError_t error) { return "stub"; }
const char* cudaGetErrorName(cudaError_t error) { return "stub"; }
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device) {
  strncpy(id, "0000:00:00.0", length);
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* properties, int device) {
  memset(properties, 0, sizeof *properties);
  strcpy(properties->name, "stub");
  properties->major = 9;
  properties->multiProcessorCount = 132;
  properties->totalGlobalMem = 80L << 30;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->regsPerMultiprocessor = 65536;
  properties->regsPerBlock = 65536;
  properties->sharedMemPerBlock = 49152;
  properties->sharedMemPerBlockOptin = 232448;
  properties->sharedMemPerMultiprocessor = 233472;
  properties->l2CacheSize = 50 << 20;
  for (int i = 0; i < 3; i++) {
    properties->maxThreadsDim[i] = 1024, properties->maxGridSize[i] = 65535;
  }
  properties->maxGridSize[0] = 2147483647;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr attribute, int device) {
  return (cudaError_t)cuDeviceGetAttribute(value, (CUdevice_attribute)attribute, device);
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult* status) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (status) {
    *status = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  }
  return cudaSuccess;
}

/* memory */
static void* host(size_t size) { return aligned_alloc(512, (size + 511) / 512 * 512); }
cudaError_t cudaMalloc(void** pointer, size_t size) {
  *pointer = host(size);
  return *pointer ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* pointer) {
  free(pointer);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** pointer, size_t size, unsigned flags) { return cudaMalloc(pointer, size); }
cudaError_t cudaFreeHost(void* pointer) { return cudaFree(pointer); }
cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  *available = 70L << 30;
  *total = 80L << 30;
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, enum cudaMemcpyKind kind) {
  memcpy(to, from, size);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
  /* what the device would copy for itself it leaves, as it leaves kernels */
  if (kind != cudaMemcpyDeviceToDevice) {
    memcpy(to, from, size);
  }
  return cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, size_t size) {
  memset(to, value, size);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
  memset(to, value, size);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* attributes, const void* pointer) {
  memset(attributes, 0, sizeof *attributes);
  attributes->type = cudaMemoryTypeDevice;
  attributes->devicePointer = (void*)pointer;
  return cudaSuccess;
}

/* streams, events and graphs */
GIVES(cudaError_t, cudaStreamCreate, stream, HANDLE, cudaStream_t* stream)
GIVES(cudaError_t, cudaStreamCreateWithFlags, stream, malloc(1), cudaStream_t* stream, unsigned flags)
GIVES(cudaError_t, cudaStreamCreateWithPriority, stream, malloc(1), cudaStream_t* stream, unsigned flags, int priority)
SUCCEEDS(cudaError_t, cudaStreamDestroy, cudaStream_t stream)
SUCCEEDS(cudaError_t, cudaStreamQuery, cudaStream_t stream)
SUCCEEDS(cudaError_t, cudaStreamSynchronize, cudaStream_t stream)
SUCCEEDS(cudaError_t, cudaStreamWaitEvent, cudaStream_t stream, cudaEvent_t event, unsigned flags)
GIVES(cudaError_t, cudaStreamGetPriority, priority, 0, cudaStream_t stream, int* priority)
GIVES(cudaError_t, cudaEventCreate, event, malloc(1), cudaEvent_t* event)
GIVES(cudaError_t, cudaEventCreateWithFlags, event, malloc(1), cudaEvent_t* event, unsigned flags)
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  return cudaSuccess;
}
SUCCEEDS(cudaError_t, cudaEventRecord, cudaEvent_t event, cudaStream_t stream)
SUCCEEDS(cudaError_t, cudaEventRecordWithFlags, cudaEvent_t event, cudaStream_t stream, unsigned flags)
SUCCEEDS(cudaError_t, cudaEventQuery, cudaEvent_t event)
SUCCEEDS(cudaError_t, cudaEventSynchronize, cudaEvent_t event)
GIVES(cudaError_t, cudaEventElapsedTime, milliseconds, 1e-3f, float* milliseconds, cudaEvent_t start, cudaEvent_t end)
SUCCEEDS(cudaError_t, cudaThreadExchangeStreamCaptureMode, enum cudaStreamCaptureMode* mode)
GIVES(cudaError_t, cudaStreamIsCapturing, status,
      capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone, cudaStream_t stream,
      enum cudaStreamCaptureStatus* status)
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* count) {
  if (id) {
    *id = 1;
  }
  if (graph) {
    *graph = HANDLE;
  }
  if (count) {
    *count = 0;
  }
  return cudaStreamIsCapturing(stream, status);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  capturing = 1;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  capturing = 0;
  *graph = HANDLE;
  return cudaSuccess;
}
GIVES(cudaError_t, cudaGraphGetNodes, count, 1, cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count)
GIVES(cudaError_t, cudaGraphInstantiateWithFlags, exec, HANDLE, cudaGraphExec_t* exec, cudaGraph_t graph,
      unsigned long long flags)
GIVES(cudaError_t, cudaGraphInstantiate, exec, HANDLE, cudaGraphExec_t* exec, cudaGraph_t graph,
      unsigned long long flags)
SUCCEEDS(cudaError_t, cudaGraphDestroy, cudaGraph_t graph)
SUCCEEDS(cudaError_t, cudaGraphExecDestroy, cudaGraphExec_t exec)
SUCCEEDS(cudaError_t, cudaGraphLaunch, cudaGraphExec_t exec, cudaStream_t stream)

/* kernels of PyTorch */
void** __cudaRegisterFatBinary(void* binary) { return HANDLE; }
void __cudaRegisterFatBinaryEnd(void** handle) {}
void __cudaUnregisterFatBinary(void** handle) {}
void __cudaRegisterFunction(void** handle, const char* a, char* b, const char* c, int d, void* e, void* f, void* g,
                            void* h, int* i) {}
void __cudaRegisterVar(void** handle, char* a, char* b, const char* c, int d, size_t e, int f, int g) {}
static __thread struct {
  dim3 grid, block;
  size_t shared;
  void* stream;
} configuration;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configuration.grid = grid, configuration.block = block, configuration.shared = shared, configuration.stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configuration.grid, *block = configuration.block, *shared = configuration.shared,
  *(void**)stream = configuration.stream;
  return cudaSuccess;
}
GIVES(cudaError_t, __cudaGetKernel, kernel, (void*)function, void** kernel, const void* function)
SUCCEEDS(cudaError_t, __cudaLaunchKernel, void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
         void* stream)
SUCCEEDS(cudaError_t, cudaLaunchKernel, const void* f, dim3 grid, dim3 block, void** arguments, size_t shared,
         cudaStream_t stream)
SUCCEEDS(cudaError_t, cudaLaunchKernelExC, const cudaLaunchConfig_t* config, const void* f, void** arguments)
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* attributes, const void* f) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->binaryVersion = attributes->ptxVersion = 90;
  return cudaSuccess;
}
SUCCEEDS(cudaError_t, cudaFuncSetAttribute, const void* f, enum cudaFuncAttribute attribute, int value)
GIVES(cudaError_t, cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, blocks, 2, int* blocks, const void* f,
      int threads, size_t shared, unsigned flags)

/* the driver, as Triton calls it */
SUCCEEDS(CUresult, cuInit, unsigned flags)
GIVES(CUresult, cuDriverGetVersion, version, CUDA_VERSION, int* version)
GIVES(CUresult, cuGetErrorString, text, "stub", CUresult error, const char** text)
GIVES(CUresult, cuDeviceGetCount, count, 1, int* count)
GIVES(CUresult, cuDeviceGet, device, ordinal, CUdevice* device, int ordinal)
GIVES(CUresult, cuCtxGetCurrent, context, HANDLE, CUcontext* context)
SUCCEEDS(CUresult, cuCtxSetCurrent, CUcontext context)
GIVES(CUresult, cuCtxGetDevice, device, 0, CUdevice* device)
GIVES(CUresult, cuCtxGetLimit, value, 0, size_t* value, CUlimit limit)
SUCCEEDS(CUresult, cuCtxSetLimit, CUlimit limit, size_t value)
GIVES(CUresult, cuDevicePrimaryCtxRetain, context, HANDLE, CUcontext* context, CUdevice device)
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  static const int values[CU_DEVICE_ATTRIBUTE_MAX] = {
      [CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR] = 9,
      [CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT] = 132,
      [CU_DEVICE_ATTRIBUTE_WARP_SIZE] = 32,
      [CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN] = 232448,
      [CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR] = 233472,
      [CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK] = 65536,
  };
  int zero = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
  *value = values[attribute] || zero ? values[attribute] : 1024;
  return CUDA_SUCCESS;
}
GIVES(CUresult, cuModuleLoadData, module, HANDLE, CUmodule* module, const void* image)
SUCCEEDS(CUresult, cuModuleUnload, CUmodule module)
GIVES(CUresult, cuModuleGetFunction, function, HANDLE, CUfunction* function, CUmodule module, const char* name)
GIVES(CUresult, cuFuncGetAttribute, value, attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0, int* value,
      CUfunction_attribute attribute, CUfunction function)
SUCCEEDS(CUresult, cuFuncSetAttribute, CUfunction function, CUfunction_attribute attribute, int value)
SUCCEEDS(CUresult, cuFuncSetCacheConfig, CUfunction function, CUfunc_cache config)
CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr*)value = pointer;
  return CUDA_SUCCESS;
}
SUCCEEDS(CUresult, cuTensorMapEncodeTiled, CUtensorMap* map, CUtensorMapDataType a, cuuint32_t b, void* c,
         const cuuint64_t* d, const cuuint64_t* e, const cuuint32_t* f, const cuuint32_t* g, CUtensorMapInterleave h,
         CUtensorMapSwizzle i, CUtensorMapL2promotion j, CUtensorMapFloatOOBfill k)
SUCCEEDS(CUresult, cuLaunchKernelEx, const CUlaunchConfig* config, CUfunction function, void** arguments, void** extra)

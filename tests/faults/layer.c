/* A Vulkan layer that makes a device fail, for tests/faults.rs. Environment variables say how; the counts begin at 1 and go over all devices of
   the process:
     FAULT_LOST_SUBMIT=n   submission n finds the device lost; so does everything on that device from then on
     FAULT_DROP_SUBMIT=n   submission n does nothing, and succeeds
     FAULT_ALLOC=n         allocation n is refused
     FAULT_ALLOC_ABOVE=b   allocations that would make more than b bytes in all are refused
     FAULT_PIPELINE=n      pipeline n cannot be made
     FAULT_OPEN=1          no device can be opened
     FAULT_TIME=1          each submission is waited for, and timed: in what the process's threads have taken of the cores, so that what else
                           runs beside it counts for less
     FAULT_LOG=file        gets a line of the counts at the end, with the most bytes that were allocated at a time and the
                           milliseconds of the slowest submission */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#define MOST_DEVICES 16
#define MOST_ALLOCATIONS 16384

struct device {
  void *dispatch; /* the loader's table, which a device's queues and command buffers share */
  VkDevice handle;
  PFN_vkGetDeviceProcAddr next;
  int is_lost;
};
static struct device devices[MOST_DEVICES];
static int n_devices;
static VkInstance instance;
static PFN_vkGetInstanceProcAddr next_of_instance;
static struct { VkDeviceMemory memory; VkDeviceSize size; } allocations[MOST_ALLOCATIONS];
static int n_live;
static unsigned long long live_bytes, peak_bytes, submissions, allocated, pipelines, slowest_ms;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static unsigned long long setting(const char *name) {
  const char *text = getenv(name);
  return text ? strtoull(text, NULL, 10) : 0;
}

/* The device of a queue or of itself. Of two with one table the later one is open. */
static struct device *device_of(void *handle) {
  for (int i = n_devices - 1; i >= 0; i--)
    if (devices[i].dispatch == *(void **)handle) return &devices[i];
  abort();
}
#define NEXT(object, name) ((PFN_##name)device_of(object)->next(device_of(object)->handle, #name))

__attribute__((destructor)) static void write_counts(void) {
  const char *path = getenv("FAULT_LOG");
  FILE *file = path && submissions ? fopen(path, "a") : NULL;
  if (!file) return;
  fprintf(file, "{\"submissions\":%llu,\"allocations\":%llu,\"pipelines\":%llu,\"peak_bytes\":%llu,\"devices\":%d,\"slowest_ms\":%llu}\n", submissions, allocated, pipelines, peak_bytes, n_devices, slowest_ms);
  fclose(file);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *alloc, VkInstance *out) {
  VkLayerInstanceCreateInfo *link = (void *)info->pNext;
  while (link && !(link->sType == VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO)) link = (void *)link->pNext;
  if (!link) return VK_ERROR_INITIALIZATION_FAILED;
  next_of_instance = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  VkResult result = ((PFN_vkCreateInstance)next_of_instance(NULL, "vkCreateInstance"))(info, alloc, out);
  if (result == VK_SUCCESS) instance = *out;
  return result;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical, const VkDeviceCreateInfo *info, const VkAllocationCallbacks *alloc, VkDevice *out) {
  VkLayerDeviceCreateInfo *link = (void *)info->pNext;
  while (link && !(link->sType == VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO && link->function == VK_LAYER_LINK_INFO)) link = (void *)link->pNext;
  if (!link || n_devices == MOST_DEVICES || setting("FAULT_OPEN")) return VK_ERROR_INITIALIZATION_FAILED;
  PFN_vkGetInstanceProcAddr of_instance = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
  PFN_vkGetDeviceProcAddr of_device = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
  link->u.pLayerInfo = link->u.pLayerInfo->pNext;
  VkResult result = ((PFN_vkCreateDevice)of_instance(instance, "vkCreateDevice"))(physical, info, alloc, out);
  if (result == VK_SUCCESS) devices[n_devices++] = (struct device){*(void **)*out, *out, of_device, 0};
  return result;
}

static VKAPI_ATTR VkResult VKAPI_CALL allocate(VkDevice device, const VkMemoryAllocateInfo *info, const VkAllocationCallbacks *alloc, VkDeviceMemory *out) {
  pthread_mutex_lock(&mutex);
  unsigned long long above = setting("FAULT_ALLOC_ABOVE");
  int is_refused = ++allocated == setting("FAULT_ALLOC") || (above && live_bytes + info->allocationSize > above);
  VkResult result = is_refused ? VK_ERROR_OUT_OF_DEVICE_MEMORY : NEXT(device, vkAllocateMemory)(device, info, alloc, out);
  if (result == VK_SUCCESS && n_live < MOST_ALLOCATIONS) {
    allocations[n_live].memory = *out;
    allocations[n_live++].size = info->allocationSize;
    live_bytes += info->allocationSize;
    if (live_bytes > peak_bytes) peak_bytes = live_bytes;
  }
  pthread_mutex_unlock(&mutex);
  return result;
}

static VKAPI_ATTR void VKAPI_CALL release(VkDevice device, VkDeviceMemory memory, const VkAllocationCallbacks *alloc) {
  pthread_mutex_lock(&mutex);
  for (int i = 0; i < n_live; i++) {
    if (allocations[i].memory != memory) continue;
    live_bytes -= allocations[i].size;
    allocations[i] = allocations[--n_live];
    break;
  }
  pthread_mutex_unlock(&mutex);
  NEXT(device, vkFreeMemory)(device, memory, alloc);
}

/* Milliseconds of all cores that the process has taken. */
static unsigned long long taken_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return (now.tv_sec * 1000ull + now.tv_nsec / 1000000) / sysconf(_SC_NPROCESSORS_ONLN);
}

static VKAPI_ATTR VkResult VKAPI_CALL submit(VkQueue queue, uint32_t n, const VkSubmitInfo *submits, VkFence fence) {
  struct device *device = device_of(queue);
  pthread_mutex_lock(&mutex);
  unsigned long long number = ++submissions;
  pthread_mutex_unlock(&mutex);
  if (number == setting("FAULT_LOST_SUBMIT")) {
    /* A driver ends the work of a lost device; here it would go on in memory that is freed. */
    NEXT(queue, vkQueueWaitIdle)(queue);
    device->is_lost = 1;
  }
  if (device->is_lost) return VK_ERROR_DEVICE_LOST;
  if (number == setting("FAULT_DROP_SUBMIT") && n == 1) {
    VkSubmitInfo empty = submits[0];
    empty.commandBufferCount = 0;
    return NEXT(queue, vkQueueSubmit)(queue, 1, &empty, fence);
  }
  if (!setting("FAULT_TIME")) return NEXT(queue, vkQueueSubmit)(queue, n, submits, fence);
  unsigned long long before = taken_ms();
  VkResult result = NEXT(queue, vkQueueSubmit)(queue, n, submits, fence);
  NEXT(queue, vkQueueWaitIdle)(queue);
  unsigned long long took = taken_ms() - before;
  if (took > slowest_ms) slowest_ms = took;
  return result;
}

static VKAPI_ATTR VkResult VKAPI_CALL wait_semaphores(VkDevice device, const VkSemaphoreWaitInfo *info, uint64_t timeout) {
  return device_of(device)->is_lost ? VK_ERROR_DEVICE_LOST : NEXT(device, vkWaitSemaphores)(device, info, timeout);
}
static VKAPI_ATTR VkResult VKAPI_CALL semaphore_value(VkDevice device, VkSemaphore semaphore, uint64_t *value) {
  return device_of(device)->is_lost ? VK_ERROR_DEVICE_LOST : NEXT(device, vkGetSemaphoreCounterValue)(device, semaphore, value);
}
static VKAPI_ATTR VkResult VKAPI_CALL wait_idle(VkQueue queue) {
  return device_of(queue)->is_lost ? VK_ERROR_DEVICE_LOST : NEXT(queue, vkQueueWaitIdle)(queue);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_pipelines(VkDevice device, VkPipelineCache cache, uint32_t n, const VkComputePipelineCreateInfo *infos, const VkAllocationCallbacks *alloc, VkPipeline *out) {
  pthread_mutex_lock(&mutex);
  int fails = ++pipelines == setting("FAULT_PIPELINE");
  pthread_mutex_unlock(&mutex);
  if (!fails) return NEXT(device, vkCreateComputePipelines)(device, cache, n, infos, alloc, out);
  for (uint32_t i = 0; i < n; i++) out[i] = VK_NULL_HANDLE;
  return VK_ERROR_OUT_OF_HOST_MEMORY;
}

#define OWN(vulkan, ours) if (!strcmp(name, #vulkan)) return (PFN_vkVoidFunction)ours
static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL device_function(VkDevice device, const char *name);
static PFN_vkVoidFunction own_function(const char *name) {
  OWN(vkGetDeviceProcAddr, device_function);
  OWN(vkAllocateMemory, allocate);
  OWN(vkFreeMemory, release);
  OWN(vkQueueSubmit, submit);
  OWN(vkWaitSemaphores, wait_semaphores);
  OWN(vkWaitSemaphoresKHR, wait_semaphores);
  OWN(vkGetSemaphoreCounterValue, semaphore_value);
  OWN(vkGetSemaphoreCounterValueKHR, semaphore_value);
  OWN(vkQueueWaitIdle, wait_idle);
  OWN(vkCreateComputePipelines, create_pipelines);
  return NULL;
}
static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL device_function(VkDevice device, const char *name) {
  PFN_vkVoidFunction own = own_function(name);
  return own ? own : device_of(device)->next(device, name);
}
static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL instance_function(VkInstance of, const char *name) {
  OWN(vkGetInstanceProcAddr, instance_function);
  OWN(vkCreateInstance, create_instance);
  OWN(vkCreateDevice, create_device);
  PFN_vkVoidFunction own = own_function(name);
  return own ? own : of ? next_of_instance(of, name) : NULL;
}
__attribute__((visibility("default"))) VKAPI_ATTR VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *interface) {
  interface->loaderLayerInterfaceVersion = 2;
  interface->pfnGetInstanceProcAddr = instance_function;
  interface->pfnGetDeviceProcAddr = device_function;
  interface->pfnGetPhysicalDeviceProcAddr = NULL;
  return VK_SUCCESS;
}

import CTorch

/// What this process runs on: versions, threads, memory.
public enum TorchRuntime {
    /// Version of the headers that this program was compiled with.
    public static var headerVersion: String { String(cString: ctorch_header_version()) }
    /// Version of the library that was found when the program started.
    public static var libraryVersion: String { String(cString: ctorch_library_version()) }
    /// The vector instructions that LibTorch's own kernels use here: `AVX512`, `AVX2`, `DEFAULT`, ….
    public static var instructionSet: String { String(cString: ctorch_cpu_capability()) }

    /// How many threads one operation may use. Set it before the first operation: a thread of the program that has computed
    /// already keeps the number that it started with.
    public static var threadCount: Int {
        get { Int(ctorch_thread_count()) }
        set { ctorch_set_thread_count(Int32(max(1, newValue))) }
    }

    /// Keeps large blocks of memory for the next tensor instead of returning each to the kernel, which on Linux saves a page
    /// fault per 4 KiB of every large temporary. For all CPU tensors made from now on; cannot be undone.
    public static func useCachingAllocator() { ctorch_caching_allocator_install() }

    /// Whether ``useCachingAllocator()`` has been called.
    public static var usesCachingAllocator: Bool { ctorch_caching_allocator_installed() }

    /// Bytes of large CPU blocks in use, and kept for reuse, by the caching allocator.
    public static var cachedMemory: (inUse: Int, kept: Int) {
        var inUse: Int64 = 0
        var kept: Int64 = 0
        ctorch_caching_allocator_usage(&inUse, &kept)
        return (Int(inUse), Int(kept))
    }

    /// Gives what the caching allocator keeps back to the system.
    public static func releaseCachedMemory() { ctorch_caching_allocator_release() }
}

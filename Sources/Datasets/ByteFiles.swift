import Foundation

/// Reads whole files and folders as bytes, `.gz` files unpacked.
public enum ByteFiles {
    /// The bytes of a file, or of all files of a folder one after the other.
    ///
    /// In a folder, regular files at any depth count, sorted by their path; hidden ones, and links to folders, are
    /// skipped.
    /// - Parameters:
    ///   - url: a file or a folder.
    ///   - extensions: when not empty, the only name endings that count in a folder, without the dot;
    ///     `txt` also stands for `txt.gz`.
    /// - Throws: ``DatasetError`` for a path that is missing, unreadable or empty, and for damaged gzip.
    public static func read(_ url: URL, extensions: [String] = []) throws(DatasetError) -> Data {
        let path = url.path(percentEncoded: false)
        let bytes: Data
        if try kind(of: url) == .typeDirectory {
            var joined = Data()
            for file in try files(in: url, extensions: extensions) {
                joined.append(try readFile(file))
            }
            bytes = joined
        } else {
            bytes = try readFile(url)
        }
        guard !bytes.isEmpty else { throw .empty(path: path) }
        return bytes
    }

    /// The files that ``read(_:extensions:)`` joins, in its order.
    static func files(in folder: URL, extensions: [String]) throws(DatasetError) -> [URL] {
        let path = folder.path(percentEncoded: false)
        var failure: DatasetError?
        let enumerator = FileManager.default.enumerator(
            at: folder.resolvingSymlinksInPath(), includingPropertiesForKeys: nil, options: [.skipsHiddenFiles]
        ) { url, error in
            failure = .unreadable(path: url.path(percentEncoded: false), reason: error.shortReason)
            return false
        }
        guard let enumerator else { throw .unreadable(path: path, reason: "the folder cannot be listed") }
        let candidates = enumerator.compactMap { $0 as? URL }
        if let failure { throw failure }

        let wanted = Set(extensions.map { $0.hasPrefix(".") ? String($0.dropFirst()) : $0 })
        let files = candidates.filter { url in
            let name = url.pathExtension == "gz" ? url.deletingPathExtension() : url
            let matches = wanted.isEmpty || wanted.contains(name.pathExtension) || wanted.contains(url.pathExtension)
            return matches && (try? kind(of: url)) == .typeRegular
        }
        guard !files.isEmpty else { throw .noFiles(path: path, extensions: extensions) }
        // By bytes, not by the locale's rules: the order of the data must be the same everywhere.
        return files.map { ($0, Array($0.path(percentEncoded: false).utf8)) }
            .sorted { $0.1.lexicographicallyPrecedes($1.1) }.map(\.0)
    }

    /// The bytes of one regular file, unpacked when its name ends in `.gz`. May be empty.
    static func readFile(_ url: URL, mapped: Bool = false) throws(DatasetError) -> Data {
        let path = url.path(percentEncoded: false)
        let type = try kind(of: url)
        guard type == .typeRegular else {
            let reason = type == .typeDirectory ? "it is a folder, expected a file" : "it is not a regular file"
            throw .unreadable(path: path, reason: reason)
        }
        let bytes: Data
        do {
            // A copy by default: a mapped file that someone shortens during a long training ends the process.
            bytes = try Data(contentsOf: url, options: mapped ? [.mappedIfSafe] : [])
        } catch {
            throw .unreadable(path: path, reason: error.shortReason)
        }
        return url.pathExtension == "gz" ? try Gzip.decompress(bytes, path: path) : bytes
    }

    /// What stands at `url`, links followed.
    private static func kind(of url: URL) throws(DatasetError) -> FileAttributeType {
        let path = url.path(percentEncoded: false)
        guard FileManager.default.fileExists(atPath: path) else { throw .missingPath(path) }
        do {
            let target = url.resolvingSymlinksInPath().path(percentEncoded: false)
            let attributes = try FileManager.default.attributesOfItem(atPath: target)
            return attributes[.type] as? FileAttributeType ?? .typeUnknown
        } catch {
            throw .unreadable(path: path, reason: error.shortReason)
        }
    }
}

extension Error {
    /// The system's own words for a failed file operation, without the domain and user-info dump of `NSError`.
    var shortReason: String {
        let error = self as NSError
        if let underlying = error.userInfo[NSUnderlyingErrorKey] as? NSError, underlying.domain == NSPOSIXErrorDomain {
            return String(cString: strerror(Int32(underlying.code)))
        }
        if error.domain == NSPOSIXErrorDomain {
            return String(cString: strerror(Int32(error.code)))
        }
        return switch (self as? CocoaError)?.code {
        case .fileReadNoPermission, .fileWriteNoPermission: "Permission denied"
        case .fileWriteOutOfSpace: "No space left on device"
        case .fileWriteFileExists: "a file of that name is in the way"
        case .fileNoSuchFile, .fileReadNoSuchFile: "no such folder"
        case .fileReadUnknown, .fileWriteUnknown: "the system refused it"
        default: error.localizedDescription.replacing("\n", with: " ")
        }
    }
}

//! The embedded store under a disk that fails: damaged files, no room, folders it may not use. Nothing that was
//! acknowledged is lost in silence. (`binary::crash` kills the server; `store_contract::embedded` has the store alone.)

mod damage;
mod folders;
mod full_disk;
mod journals;
mod room;
mod store;

//! A site's folder: the authority, the node's identity, and an administrator's identity.

use super::cli::{Init, Issue};
use mover::{Error, Holder, Name, Result, Role, World};
use std::fs::{self, DirBuilder};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use wire::identity::{Address, Authority, Credentials, create_private, is_guarded, is_private, put_guarded};

pub fn init(arguments: &Init, world: &World) -> Result<()> {
    let folder = &arguments.folder;
    // Everybody may read names and certificates there, whatever the umask; nobody else writes.
    let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
    made.map_err(|error| failed(folder, error))?;
    is_guarded(folder)?;
    let authority = Authority::create(&arguments.site, world)?;
    // First what must not be there yet: a second init destroys nothing.
    create_private(&folder.join(AUTHORITY_KEY), authority.key_pem().as_bytes())?;
    put_guarded(&folder.join(AUTHORITY), authority.certificate_pem())?;
    put_guarded(&folder.join(SITE), &format!("{}\n", arguments.site))?;
    let address = address(arguments);
    if let Some(address) = &address {
        put_guarded(&folder.join(ADDRESS), &format!("{address}\n"))?;
    }
    let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(Into::into).into();
    hosts.extend(arguments.host.clone());
    let named = |role, name: &str| Ok::<_, Error>(Holder::new(role, name.parse()?));
    for (holder, hosts, folder_name) in
        [(named(Role::Node, "node")?, hosts, "node"), (named(Role::Admin, "admin")?, Vec::new(), "admin")]
    {
        let issued = authority.issue(&holder, &hosts, NODE_DAYS, world)?;
        Credentials::store(&folder.join(folder_name), &issued, authority.certificate_pem(), address.as_ref())?;
    }
    let config = format!(
        "# See `windlass-store serve --help`.\nlisten = \"{}\"\nidentity = \"node\"\n\
         # Folder of the site's authority: this node makes tokens and gives out certificates.\nauthority = \".\"\n# Lists who is denied access, one in each line: proxy host7\n\
         deny = \"deny\"\n\
         # Each pack is read again, chunk by chunk, 30 days after the last time; 0: never.\n# scrub_seconds = 2592000\n# scrub_rate = \"20MiB\"\n\n# [[repository]]\n# name = \"main\"\n\
         # path = \"/backup/main\"\n",
        arguments.listen
    );
    put_guarded(&folder.join(DENY), "")?;
    put_guarded(&folder.join(CONFIG), &config)?;
    if arguments.quiet {
        return Ok(());
    }
    println!(
        "site {} in {}: add repositories to {CONFIG}, then run `windlass-store serve`",
        arguments.site,
        folder.display()
    );
    println!(
        "for an administrator: copy {} to ~/.config/windlass/identity on the administrator's machine",
        folder.join("admin").display()
    );
    println!("others join with a token: see `windlass token create --help`");
    Ok(())
}

pub fn issue(arguments: &Issue, world: &World) -> Result<()> {
    let authority = authority(&arguments.folder)?;
    let holder = Holder { role: arguments.role, name: arguments.name.clone(), owner: arguments.owner.clone() };
    let issued = authority.issue(&holder, &arguments.host, arguments.days, world)?;
    let address = match fs::read_to_string(arguments.folder.join(ADDRESS)) {
        Ok(text) => Some(text.trim().parse::<Address>()?),
        Err(_) => None,
    };
    Credentials::store(&arguments.out, &issued, authority.certificate_pem(), address.as_ref())?;
    if !arguments.quiet {
        let days = if arguments.days == 1 { "1 day".to_owned() } else { format!("{} days", arguments.days) };
        println!("identity of {holder}, valid for {days}, in {}", arguments.out.display());
    }
    Ok(())
}

/// The address at which identities that are made here are renewed; none when the port is not known yet.
fn address(arguments: &Init) -> Option<Address> {
    let port = arguments.listen.parse::<SocketAddr>().map(|listen| listen.port()).unwrap_or_default();
    let host = arguments.host.first().map_or("localhost", String::as_str);
    (port != 0).then(|| Address { host: host.to_owned(), port })
}

/// The authority in a site's folder.
pub fn authority(folder: &Path) -> Result<Authority> {
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path)
            .map_err(|error| failed(&path, error).hint("give the folder that `windlass-store init` created"))
    };
    is_private(&folder.join(AUTHORITY_KEY))?;
    [folder, &folder.join(AUTHORITY), &folder.join(SITE)].into_iter().try_for_each(is_guarded)?;
    let site: Name = read(SITE)?.trim().parse()?;
    Authority::from_pem(&site, &read(AUTHORITY)?, &read(AUTHORITY_KEY)?)
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::usage(path.display().to_string()).because(error)
}

const AUTHORITY: &str = "ca.pem";
const AUTHORITY_KEY: &str = "ca-key.pem";
const ADDRESS: &str = "address";
const SITE: &str = "site";
const DENY: &str = "deny";
const CONFIG: &str = "windlass-store.toml";
const NODE_DAYS: u32 = 365;
